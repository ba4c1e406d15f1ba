# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What stands in a prefix of llama-server, and where the ones beside it are kept."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from .._core.files import write_atomic


def staged_prefix(prefix: str) -> str:
    """Where what is to become the prefix waits."""
    return f"{prefix}.staged"


def previous_prefix(prefix: str) -> str:
    """Where the prefix before this one is kept."""
    return f"{prefix}.previous"


def note_in_manifest(prefix: str, **entries: Any) -> None:
    """Note something in a prefix's manifest that is not there yet; only a help, so a failure is no error."""
    manifest = read_manifest(prefix)
    if manifest and any(manifest.get(key) != value for key, value in entries.items()):
        with contextlib.suppress(OSError):
            write_manifest(prefix, {**manifest, **entries})


def read_manifest(prefix: str) -> dict[str, Any]:
    """What stands in the prefix, by its manifest.json; empty where there is none or it cannot be read."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(prefix, "manifest.json"), "rb") as stream:
        manifest = json.load(stream)
        if isinstance(manifest, dict):
            return manifest
    return {}


def write_manifest(new: str, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    write_atomic(os.path.join(new, "manifest.json"), text.encode(), 0o644)
