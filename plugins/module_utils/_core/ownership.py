# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What is ours, and what root may trust.

A folder is ours by its mark, which is written as soon as the folder exists.
"""

from __future__ import annotations

import json
import os
from typing import Any

from .errors import MagiError

# The manifest of a folder that is made, replaced and removed as a whole, such as llama-server's prefix.
MANIFEST = "manifest.json"
MARK = {"managed_by": "magi.llama"}
MANIFEST_LIMIT_BYTES = 4 << 20


class OwnershipError(MagiError):
    """Something on the host that is not ours, or that root must not trust. Nothing was changed."""


def read_mark(folder: str) -> dict[str, Any]:
    """The manifest of a folder that is ours; empty where it has none."""
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as stream:
            manifest = json.loads(stream.read(MANIFEST_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) and _is_marked(manifest) else {}


def _is_marked(manifest: dict[str, Any]) -> bool:
    # Prefixes of 0.1 have these two keys in place of the mark.
    of_first_version = isinstance(manifest.get("layout"), int) and manifest.get("method") in ("portable", "release")
    return of_first_version or MARK.items() <= manifest.items()


def is_own_folder(folder: str) -> bool:
    """Whether a folder is ours to replace and to remove: it is marked, or empty. A link never is."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return False
    if read_mark(folder):
        return True
    try:
        return not os.listdir(folder)
    except OSError:
        return False


def require_own_folder(folder: str, variable: str) -> None:
    """Raise OwnershipError where something exists at a path that we did not make. variable names the path's setting."""
    if os.path.lexists(folder) and not is_own_folder(folder):
        raise OwnershipError(
            f"{folder} already exists, is not empty and was not made by magi.llama, which replaces and removes the "
            f"whole folder. Nothing was changed. Set {variable} to a folder of its own, or move this one away."
        )
