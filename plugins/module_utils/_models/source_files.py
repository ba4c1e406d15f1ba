# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A model's files as a scan found them, and by what it is seen that they are still the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class SourceFile(NamedTuple):
    """A file as the scan found it. alias is its name where a store names the file by its digest, else empty.

    real is the path that it was found at without links, empty where that is not known.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    alias: str = ""
    real: str = ""


def fingerprint_of(files: Sequence[SourceFile]) -> dict[str, Any]:
    """Return what identifies unchanged files; for shards total size, newest time, first inode, and each one's."""
    fingerprint: dict[str, Any] = {
        "size": sum(file.size for file in files),
        "mtime_ns": max(file.mtime_ns for file in files),
        "inode": files[0].inode,
    }
    if len(files) > 1:
        fingerprint["shards"] = [[file.size, file.mtime_ns, file.inode] for file in files]
    return fingerprint
