# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The manifest of a prefix of llama-server, and the paths of the staged and the previous prefix."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from .._core.files import write_atomic
from .._core.ownership import MANIFEST, MARK, read_mark, require_own_folder


def staged_prefix(prefix: str) -> str:
    """Path of the staged prefix, which will become the prefix."""
    return f"{prefix}.staged"


def new_prefix(prefix: str) -> str:
    """Where a prefix is filled."""
    return f"{prefix}.new"


def previous_prefix(prefix: str) -> str:
    """Path of the previous prefix."""
    return f"{prefix}.previous"


def require_own_prefixes(prefix: str) -> None:
    """Raise OwnershipError where the prefix, or what a run puts next to it, exists and is not ours."""
    for path in (prefix, new_prefix(prefix), staged_prefix(prefix), previous_prefix(prefix)):
        require_own_folder(path, "runtime_prefix")


def note_in_manifest(prefix: str, **entries: Any) -> None:
    """Add values to a prefix's manifest; they are optional, so a failure is ignored."""
    manifest = read_manifest(prefix)
    if manifest and any(manifest.get(key) != value for key, value in entries.items()):
        with contextlib.suppress(OSError):
            write_manifest(prefix, {**manifest, **entries})


def read_manifest(prefix: str) -> dict[str, Any]:
    """The content of the prefix's manifest.json; empty if it is missing, cannot be read or is not ours."""
    return read_mark(prefix)


def write_manifest(new: str, manifest: Mapping[str, Any]) -> None:
    """Write a prefix's manifest, which marks it as ours. Raises OSError."""
    text = json.dumps({**MARK, **manifest}, indent=2, sort_keys=True) + "\n"
    write_atomic(os.path.join(new, MANIFEST), text.encode(), 0o644)
