# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A model file on the host while it is copied: FILE.part, which becomes FILE once every piece is there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Callable

from .._core.errors import MagiError
from .._core.ownership import require_trusted
from .pieces import Pieces, write_pieces

SUFFIX = ".part"
_BLOCK = 1 << 20


class PartError(MagiError):
    """A file that cannot be written, or is not what it should be."""


class PartFile:
    """One file of a run on this host, from which pieces are read, and to which missing ones are written.

    folder is the models folder, name the file's path in it. Pieces are written under a lock of their own, so threads
    can share it. have is the set of the numbers of pieces that are there and have been compared.
    """

    def __init__(self, folder: str, name: str, pieces: Pieces) -> None:
        self.name, self.pieces = name, pieces
        self.path = os.path.join(folder, name)
        self.have: set[int] = set()
        self.is_done = False
        self.resumed_bytes = 0
        self._folder = folder
        self._lock = threading.Lock()
        self._descriptor = -1

    def open_complete(self) -> bool:
        """Open the finished file for reading, if it is there with the right size."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != self.pieces.size:
            os.close(descriptor)
            return False
        self._descriptor, self.is_done = descriptor, True
        self.have = set(range(len(self.pieces.digests)))
        return True

    def open_part(self, alive: Callable[[], object] = lambda: None) -> None:
        """Open FILE.part, or create it, and find out which pieces it has. Raises OSError, PartError.

        alive is called after each piece that is read.
        """
        self._require_free_name()
        make_parents(self._folder, self.name)
        require_trusted(os.path.dirname(self.path))
        self._descriptor = os.open(
            self.path + SUFFIX, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
            raise PartError(f"{self.path}{SUFFIX} is a link, or another user's: remove it. Nothing was written.")
        os.fchmod(self._descriptor, 0o600)
        if status.st_size > self.pieces.size:
            os.ftruncate(self._descriptor, self.pieces.size)
        for number in range(len(self.pieces.digests)):
            if self._has_data(number) and self.pieces.is_piece(number, self._read(number)):
                self.have.add(number)
                self.resumed_bytes += self.pieces.length(number)
            alive()

    def _has_data(self, number: int) -> bool:
        """Whether anything was written to the place of a piece: what was never written need not be read."""
        start = number * self.pieces.piece_bytes
        try:
            return os.lseek(self._descriptor, start, os.SEEK_DATA) < start + self.pieces.length(number)
        except OSError:
            # There is nothing from here to the end.
            return False

    def missing(self) -> set[int]:
        """The numbers of the pieces that are not there."""
        return set(range(len(self.pieces.digests))) - self.have

    def _read(self, number: int) -> bytes:
        return read_at(self._descriptor, number * self.pieces.piece_bytes, self.pieces.length(number))

    def read(self, number: int) -> bytes | None:
        """A piece that is there; None for another, or where the disk does not give it."""
        if number not in self.have:
            return None
        try:
            data = self._read(number)
        except OSError:
            return None
        return data if len(data) == self.pieces.length(number) else None

    def write(self, number: int, data: bytes) -> bool:
        """Keep a piece; False where it is not this piece, or is there already. Raises OSError."""
        if number in self.have or not self.pieces.is_piece(number, data):
            return False
        at, left = number * self.pieces.piece_bytes, memoryview(data)
        while left:
            count = os.pwrite(self._descriptor, left, at)
            at, left = at + count, left[count:]
        with self._lock:
            if number in self.have:
                return False
            self.have.add(number)
        return True

    def finish(self, sha256: str, alive: Callable[[], object] = lambda: None) -> None:
        """Give the file its name, and owner and permissions of the models folder. Raises OSError, PartError.

        With a sha256 all of it is read again and compared: the checksums of pieces may be of another file.
        alive is called after each block of it.
        """
        if sha256 and self._sha256(alive) != sha256:
            os.unlink(self.path + SUFFIX)
            raise PartError(
                f"{self.path} is not what the manifest says (sha256 {sha256[:12]}…), although each piece "
                "is what the source has announced: the source has another file. It was removed. Check the source, and "
                f"remove {os.path.basename(self.path)}.pieces there."
            )
        status = os.stat(self._folder)
        if os.geteuid() == 0:
            os.fchown(self._descriptor, status.st_uid, status.st_gid)
        os.fchmod(self._descriptor, status.st_mode & 0o666 | 0o400)
        os.fsync(self._descriptor)
        self._require_free_name()
        os.rename(self.path + SUFFIX, self.path)
        # This also syncs the folder.
        write_pieces(self.path, self.pieces)
        self.is_done = True

    def _require_free_name(self) -> None:
        """Raise PartError where something has the file's name: a file of another size, or a link that leads nowhere."""
        if os.path.lexists(self.path):
            raise PartError(
                f"{self.path} was put there since the run began. It is not written over: a server may use it. Remove "
                f"it, and run again: what has been copied is in {os.path.basename(self.path)}{SUFFIX}."
            )

    def _sha256(self, alive: Callable[[], object]) -> str:
        digest, at = hashlib.sha256(), 0
        while block := os.pread(self._descriptor, _BLOCK, at):
            digest.update(block)
            at += len(block)
            alive()
        return digest.hexdigest()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def read_at(descriptor: int, start: int, length: int) -> bytes:
    """Bytes of an open file, fewer at its end. Raises OSError."""
    found = bytearray()
    while len(found) < length:
        block = os.pread(descriptor, min(_BLOCK, length - len(found)), start + len(found))
        if not block:
            break
        found += block
    return bytes(found)


def make_parents(folder: str, name: str) -> None:
    """Make the folders of a file below the models folder, like it.

    Raises OSError, PartError where one is a link, OwnershipError where another user could replace one meanwhile.
    """
    status = os.stat(folder)
    at = folder
    for part in name.split("/")[:-1]:
        # Before anything is made in it: what is made there could be a link by the time its owner is set.
        require_trusted(at)
        at = os.path.join(at, part)
        try:
            os.mkdir(at, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(at).st_mode):
                raise PartError(f"{at} is not a folder: nothing is written through a link. Remove it.") from None
            continue
        if os.geteuid() == 0:
            os.chown(at, status.st_uid, status.st_gid)
        os.chmod(at, status.st_mode & 0o777)


def written_bytes(path: str) -> int:
    """The bytes on disk of FILE.part; 0 if there is none."""
    try:
        return os.lstat(path + SUFFIX).st_blocks * 512
    except OSError:
        return 0


def free_bytes(folder: str) -> int:
    """What this user can still write to the folder's file system. Raises OSError."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def require_space(folder: str, needed: int, reserve: int) -> None:
    """Raise PartError where needed bytes and what is to stay free do not fit."""
    free = free_bytes(folder)
    if needed and free < needed + reserve:
        raise PartError(
            f"{folder} has {_gib(free)} free, and the files need {_gib(needed)}, with {_gib(reserve)} to stay free "
            "(models_reserve). Nothing was copied. Remove models that no profile needs, or set models_dest."
        )


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"
