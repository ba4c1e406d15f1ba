# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Write files so that a reader sees the old or the new content, never a mix."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from typing import Any, NamedTuple

from .errors import MagiError

# Marks leftovers of an interrupted write.
TEMPORARY_PREFIX = ".magi-llama-"
TEMPORARY_SUFFIX = ".tmp"
# Of the files that we write, the registry of thousands of models is the largest: 25 MB.
MAX_JSON_BYTES = 256 << 20


def plain_path(path: str) -> str:
    """A path without doubled or trailing slashes: state directories are compared as text."""
    plain = os.path.normpath(path)
    # POSIX allows two leading slashes to have a meaning of their own; here they have none.
    return plain[1:] if plain.startswith("//") else plain


def require_file_path(path: str, variable: str) -> None:
    """Raise MagiError where the path of a file names a folder. variable names the path's setting."""
    if os.path.isdir(path) or path.endswith("/"):
        raise MagiError(
            f"{variable} is the path of a file, but {path} is a folder. Nothing was changed. Set {variable} to a file, "
            f"such as {path.rstrip('/')}/{variable.partition('_')[0]}.json."
        )


def read_regular(path: str, limit: int) -> bytes | None:
    """Return the first bytes of a regular file; None if it is a link, a folder or anything else, or not readable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(limit)
    finally:
        os.close(descriptor)


def json_of(path: str) -> dict[str, Any]:
    """Return the JSON object in a regular file; empty if there is none. No other file is read further than a byte."""
    if read_regular(path, 1) != b"{":
        return {}
    try:
        content = json.loads(read_regular(path, MAX_JSON_BYTES) or b"")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def make_folders(folder: str) -> None:
    """Make a folder and those above it that are missing, each 0755 under any umask. Raises OSError."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent != folder:
        make_folders(parent or ".")
    # The servers' user has to pass, also where the run has a umask such as 077. A later chmod could meet a link.
    mask = os.umask(0o022)
    try:
        # Another run may make it meanwhile.
        os.makedirs(folder, mode=0o755, exist_ok=True)
    finally:
        os.umask(mask)


class Temporary(NamedTuple):
    """A temporary file. While its descriptor is open it is locked, which shows that its writer is alive."""

    path: str
    descriptor: int


def leftovers(folder: str) -> list[str]:
    """Return the temporary files in a folder whose writers have ended; empty if it cannot be read."""
    return [path for path in _temporaries(folder) if _is_left_over(path)]


def remove_leftovers(folder: str) -> None:
    """Remove the temporary files in a folder whose writers have ended."""
    for path in _temporaries(folder):
        _is_left_over(path, remove=True)


def _temporaries(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [
        os.path.join(folder, name)
        for name in names
        if name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)
    ]


def _is_left_over(path: str, remove: bool = False) -> bool:
    """Whether no writer has the lock of a temporary file; remove also removes such a file, while it is locked here."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        # It was renamed, or is another user's.
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:
            os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def write_temporary(path: str, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> Temporary:
    """Write data to a temporary file next to path and sync it, for a rename to path; the caller discards it afterwards.

    mode is the file's permission bits; owner is (uid, gid), by default the caller's. Raises OSError.
    """
    temporary = _new_temporary(os.path.dirname(path) or ".")
    try:
        with os.fdopen(temporary.descriptor, "wb", closefd=False) as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            if owner is not None:
                os.fchown(stream.fileno(), *owner)
            os.fsync(stream.fileno())
    except BaseException:
        discard(temporary)
        raise
    return temporary


def _new_temporary(folder: str) -> Temporary:
    while True:
        descriptor, path = tempfile.mkstemp(dir=folder, prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX)
        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return Temporary(path, descriptor)
        # Another run took it for a leftover before it was locked.
        os.close(descriptor)


def discard(temporary: Temporary) -> None:
    """Remove a temporary file if it was not renamed, and end its lock."""
    with contextlib.suppress(OSError):
        if os.stat(temporary.path).st_ino == os.fstat(temporary.descriptor).st_ino:
            os.unlink(temporary.path)
    with contextlib.suppress(OSError):
        os.close(temporary.descriptor)


def sync_folder(folder: str) -> None:
    """Sync a folder, so that renames and removals in it are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: str, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Write data to path through a temporary file next to it; parent folders are created (0755).

    mode and owner are those of write_temporary. Raises OSError.
    """
    folder = os.path.dirname(path) or "."
    make_folders(folder)
    temporary = write_temporary(path, data, mode, owner)
    try:
        os.replace(temporary.path, path)
    finally:
        discard(temporary)
    sync_folder(folder)
