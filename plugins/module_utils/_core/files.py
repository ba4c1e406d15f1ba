# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Write files so that a reader sees the old or the new content, never a mix."""

from __future__ import annotations

import contextlib
import os
import tempfile

# Marks leftovers of an interrupted write.
TEMPORARY_PREFIX = ".magi-llama-"
TEMPORARY_SUFFIX = ".tmp"


def plain_path(path: str) -> str:
    """A path without doubled or trailing slashes: state directories are compared as text."""
    plain = os.path.normpath(path)
    # POSIX allows two leading slashes to have a meaning of their own; here they have none.
    return plain[1:] if plain.startswith("//") else plain


def make_folders(folder: str) -> None:
    """Make a folder and those above it that are missing, each 0755 under any usual umask. Raises OSError."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent != folder:
        make_folders(parent or ".")
    # Another run may make it meanwhile.
    os.makedirs(folder, mode=0o755, exist_ok=True)


def leftovers(folder: str) -> list[str]:
    """Paths of the temporary files in a folder; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return [
            os.path.join(folder, name)
            for name in sorted(os.listdir(folder))
            if name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)
        ]
    return []


def write_temporary(path: str, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> str:
    """Write data to a temporary file next to path and sync it, for a rename to path; returns the temporary file's path.

    mode is the file's permission bits; owner is (uid, gid), by default the caller's. Raises OSError, leaving nothing.
    """
    folder = os.path.dirname(path) or "."
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX)
    try:
        with os.fdopen(descriptor, "wb") as stream:
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


def discard(temporary: str) -> None:
    """Remove a temporary file if it was not renamed."""
    with contextlib.suppress(OSError):
        os.unlink(temporary)


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
        os.replace(temporary, path)
    finally:
        discard(temporary)
    sync_folder(folder)
