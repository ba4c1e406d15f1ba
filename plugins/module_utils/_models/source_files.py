# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A model's files as a scan found them, and by what it is seen that they are still the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class SourceFile(NamedTuple):
    """A file as the scan found it. alias is its name where a store names the file by its digest, else empty.

    real is the path that it was found at without links, empty where that is not known.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int = 0
    alias: str = ""
    real: str = ""

    @classmethod
    def of(cls, path: str, status: os.stat_result, alias: str = "", real: str = "") -> SourceFile:
        """Return the file at path with this status."""
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns, alias, real)


def fingerprint_of(files: Sequence[SourceFile]) -> dict[str, Any]:
    """Return what identifies unchanged files; for shards total size, newest time, first inode, and each one's."""
    fingerprint: dict[str, Any] = {
        "size": sum(file.size for file in files),
        "mtime_ns": max(file.mtime_ns for file in files),
        "inode": files[0].inode,
        "ctime_ns": max(file.ctime_ns for file in files),
    }
    if len(files) > 1:
        fingerprint["shards"] = [[file.size, file.mtime_ns, file.inode, file.ctime_ns] for file in files]
    return fingerprint


def content_keys(fingerprint: Mapping[str, Any]) -> list[tuple[int, int, int]] | None:
    """Return size, modification time and change time of each file; None in a registry without change times.

    They are equal while no one has written to the files, even if the modification time was set back afterwards. Inodes
    are left out: a file system that is mounted again may give its files other numbers.
    """
    if "ctime_ns" not in fingerprint:
        return None
    whole = [fingerprint["size"], fingerprint["mtime_ns"], fingerprint["inode"], fingerprint["ctime_ns"]]
    return [(size, mtime, ctime) for size, mtime, _inode, ctime in fingerprint.get("shards") or [whole]]
