# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The pieces of a model file: their checksums, and the file FILE.pieces next to it that keeps them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._core.errors import MagiError
from .._core.files import read_regular, write_atomic

SCHEMA_VERSION = 1
SUFFIX = ".pieces"
MIB = 1 << 20
# Of a small file more, smaller pieces: hosts can only hand on what they have as a whole.
PIECE_BYTES = ((1 << 30, 16 * MIB), (256 * MIB, 4 * MIB), (0, MIB))
MAX_PIECES = 1 << 20
MAX_FILE_BYTES = 128 * MIB
_BLOCK = MIB
_DIGEST = re.compile("[0-9a-f]{64}")


class PiecesError(MagiError):
    """A list of pieces, or the file that it is of, that cannot be used."""


@dataclass(frozen=True)
class Pieces:
    """A file's size in bytes, its sha256, the bytes of each piece but the last, and the sha256 of each piece."""

    size: int
    sha256: str
    piece_bytes: int
    digests: tuple[str, ...]

    def length(self, number: int) -> int:
        """The bytes of a piece."""
        return min(self.piece_bytes, self.size - number * self.piece_bytes)

    def is_piece(self, number: int, data: bytes) -> bool:
        """Whether these bytes are the piece of this number."""
        return len(data) == self.length(number) and hashlib.sha256(data).hexdigest() == self.digests[number]

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "size": self.size,
            "sha256": self.sha256,
            "piece_bytes": self.piece_bytes,
            "pieces": list(self.digests),
        }


def piece_bytes_for(size: int) -> int:
    """The bytes of a piece of a file of this size."""
    return next(piece for least, piece in PIECE_BYTES if size >= least)


def parse_pieces(value: Any, where: str) -> Pieces:
    """The pieces in a mapping of as_dict. Raises PiecesError, which names the key."""
    if not isinstance(value, Mapping) or value.get("schema_version") != SCHEMA_VERSION:
        raise PiecesError(f"{where} is not a list of pieces of schema_version {SCHEMA_VERSION}: remove it.")
    size: Any = value.get("size")
    piece_bytes: Any = value.get("piece_bytes")
    digests = value.get("pieces")
    if not _is_count(size) or not _is_count(piece_bytes) or piece_bytes > PIECE_BYTES[0][1]:
        raise PiecesError(f"{where}: size and piece_bytes have to be numbers of bytes, a piece 16 MiB at most.")
    if -(-size // piece_bytes) > MAX_PIECES or not isinstance(digests, (list, tuple)):
        raise PiecesError(f"{where}: pieces has to be a list of {MAX_PIECES} checksums at most.")
    for key, found in (("sha256", [value.get("sha256")]), ("pieces", digests)):
        if any(not isinstance(digest, str) or not _DIGEST.fullmatch(digest) for digest in found):
            raise PiecesError(f"{where}: {key} has to be SHA-256 in 64 hexadecimal digits.")
    if len(digests) != -(-size // piece_bytes):
        raise PiecesError(f"{where}: {len(digests)} pieces of {piece_bytes} bytes are not a file of {size} bytes.")
    return Pieces(size, value["sha256"], piece_bytes, tuple(digests))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def compute_pieces(path: str) -> Pieces:
    """Read a file once for its sha256 and those of its pieces. Raises PiecesError where it changes meanwhile."""
    with open(path.encode("utf-8", "surrogateescape"), "rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        size = piece_bytes_for(before.st_size)
        whole, digests, done = hashlib.sha256(), [], 0
        while done < before.st_size:
            piece, left = hashlib.sha256(), min(size, before.st_size - done)
            while left:
                block = stream.read(min(_BLOCK, left))
                if not block:
                    raise PiecesError(f"{path} became shorter while it was read. Try again when it is complete.")
                whole.update(block)
                piece.update(block)
                left -= len(block)
                done += len(block)
            digests.append(piece.hexdigest())
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise PiecesError(f"{path} changed while it was read. Try again when it is complete.")
    if not digests:
        raise PiecesError(f"{path} is empty. Remove it, or copy the complete file.")
    return Pieces(before.st_size, whole.hexdigest(), size, tuple(digests))


def known_pieces(path: str) -> Pieces | None:
    """The pieces in FILE.pieces if they are those of the file as it is now; None otherwise."""
    content = read_regular(path + SUFFIX, MAX_FILE_BYTES)
    try:
        value = json.loads(content or b"")
        pieces = parse_pieces(value, path + SUFFIX)
        status = os.stat(path)
    except (OSError, ValueError, RecursionError, PiecesError):
        return None
    is_same = (pieces.size, value.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
    return pieces if is_same else None


def write_pieces(path: str, pieces: Pieces) -> None:
    """Write FILE.pieces, with owner and permissions of the file. Raises OSError."""
    status = os.stat(path)
    owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 else None
    content = json.dumps({**pieces.as_dict(), "mtime_ns": status.st_mtime_ns}, indent=0).encode()
    write_atomic(path + SUFFIX, content + b"\n", status.st_mode & 0o666, owner)


def pieces_of(path: str, keep: bool = True) -> Pieces:
    """The pieces of a file: those that are known, or else read now and kept where the folder can be written."""
    pieces = known_pieces(path)
    if pieces is None:
        pieces = compute_pieces(path)
        # What is not kept is read again next time.
        with contextlib.suppress(OSError):
            if keep:
                write_pieces(path, pieces)
    return pieces
