# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a host has of the files of a manifest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from .part_file import PartError
from .pieces import known_pieces
from .wanted import check_name


def inspect_files(folder: str, files: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each {"name", "size", "sha256", "wanted"} the same with "state": present, missing or differs.

    A file is present by its size, and differs also where FILE.pieces says that it is another: nothing is read. size and
    sha256 may be None. Raises PartError where the folder is missing or cannot be written, WantedError for a wrong name.
    """
    if not os.path.isdir(folder):
        raise PartError(
            f"models_dest: there is no folder {folder} on this host. Create it for the user who owns the models, or "
            "set models_dest to the folder that has them."
        )
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PartError(f"models_dest: {folder} cannot be written by this user. Use become, or set models_dest.")
    return [_inspect(folder, file) for file in files]


def _inspect(folder: str, file: Mapping[str, Any]) -> dict[str, Any]:
    name = check_name(file["name"])
    path = os.path.join(folder, name)
    size, sha256 = file.get("size"), file.get("sha256")
    found = {"name": name, "size": size, "sha256": sha256, "wanted": bool(file.get("wanted"))}
    try:
        status = os.stat(path)
    except OSError:
        # A link may lead to a disk that is away now.
        return {**found, "state": "differs" if os.path.lexists(path) else "missing"}
    is_same = stat.S_ISREG(status.st_mode) and size in (None, status.st_size)
    pieces = known_pieces(path) if is_same else None
    is_same = is_same and (pieces is None or sha256 in (None, pieces.sha256))
    return {**found, "state": "present" if is_same else "differs"}
