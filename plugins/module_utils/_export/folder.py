# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The folder with exported files: what in it is ours, what differs, and how all of it changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .._core.files import read_regular, write_atomic
from .._core.ownership import MANIFEST, MARK, read_mark
from .._launch.config_files import File, write_all
from .workloads import ExportError

VARIABLE = "export_dir"
MAX_BYTES = 16 << 20


@dataclass
class Change:
    """Files to write and paths to remove, with a diff as Ansible shows it; the manifest's text on the way and after."""

    write: list[File] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)
    manifests: list[bytes] = field(default_factory=list)

    @property
    def is_needed(self) -> bool:
        return bool(self.write or self.remove or self.manifests)


def change_of(folder: str, form: str, texts: Mapping[str, str]) -> Change:
    """Compare a folder with the files of a format. Raises ExportError where something is not ours to change.

    Ours are the files that the manifest names with a digest that they still have. Other files, such as a user's own
    overlays, are left alone, and are an error only where one of ours would take their place.
    """
    recorded = _recorded(folder, form)
    found = {name: _refused(folder, name, recorded.get(name, [])) for name in sorted({*texts, *recorded})}
    wrong = [text for text in found.values() if text]
    if wrong:
        raise ExportError(f"Nothing was written. {' '.join(wrong)}")
    change = Change()
    for name, text in sorted(texts.items()):
        before = _content(os.path.join(folder, name))
        if before != text.encode():
            change.write.append(File(os.path.join(folder, name), text.encode()))
            change.diff.append(_diff(name, before, text))
    for name in sorted(recorded.keys() - texts.keys()):
        path = os.path.join(folder, name)
        before = _content(path)
        if before is not None:
            change.remove.append(path)
            change.diff.append(_diff(name, before, ""))
    new = {name: [_digest(text.encode())] for name, text in sorted(texts.items())}
    # A run that is killed on the way leaves old files and new ones: both are ours.
    both = {name: [*new.get(name, []), *recorded.get(name, [])] for name in sorted({*new, *recorded})}
    manifests = [_manifest(form, both), _manifest(form, new)]
    if change.write or change.remove or _content(os.path.join(folder, MANIFEST)) != manifests[1]:
        change.manifests = manifests
    return change


def apply(folder: str, change: Change) -> None:
    """Write and remove the files; where one cannot be written, none is. Raises LaunchConfigError, OSError."""
    if not change.is_needed:
        return
    path = os.path.join(folder, MANIFEST)
    write_atomic(path, change.manifests[0], 0o644)
    write_all(change.write, change.remove)
    for removed in change.remove:
        _remove_empty(os.path.dirname(removed), folder)
    write_atomic(path, change.manifests[1], 0o644)


def _manifest(form: str, files: Mapping[str, list[str]]) -> bytes:
    return (json.dumps({**MARK, "format": form, "files": files}, indent=1) + "\n").encode()


def _remove_empty(folder: str, top: str) -> None:
    while folder != top and folder.startswith(top):
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)


def _recorded(folder: str, form: str) -> dict[str, list[str]]:
    """The digests of the files that an earlier run has written. Raises ExportError for a folder of something else."""
    if not os.path.lexists(folder):
        return {}
    if os.path.islink(folder) or not os.path.isdir(folder):
        raise ExportError(f"{folder} is not a folder. Nothing was written. Set {VARIABLE} to a folder of its own.")
    manifest = read_mark(folder)
    if not manifest and os.listdir(folder):
        raise ExportError(
            f"{folder} already exists, is not empty and was not made by export.yml. Nothing was written. Set "
            f"{VARIABLE} to a folder of its own, or move this one away."
        )
    if manifest and manifest.get("format") != form:
        raise ExportError(
            f"{folder} has the format {manifest.get('format') or 'of something else'!s:.40}, not {form}. Nothing "
            f"was written. Set {VARIABLE} to another folder, or remove this one."
        )
    files: Any = manifest.get("files") or {}
    return {str(name): list(map(str, digests)) for name, digests in files.items() if _is_inside(str(name))}


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _refused(folder: str, name: str, recorded: list[str]) -> str | None:
    """Why a file may not be changed; None if it may."""
    path = os.path.join(folder, name)
    above = os.path.dirname(path)
    while above != folder:
        if os.path.islink(above) or (os.path.lexists(above) and not os.path.isdir(above)):
            return f"{above} is not a folder of this export: move it away."
        above = os.path.dirname(above)
    if not os.path.lexists(path):
        return None
    if not recorded:
        return f"{path} exists and was not written by export.yml: move it away."
    content = _content(path)
    if content is None or _digest(content) not in recorded:
        return (
            f"{path} was changed by hand: put the change into an overlay or a file of its own, and remove this file, "
            "or move it away."
        )
    return None


def _content(path: str) -> bytes | None:
    return read_regular(path, MAX_BYTES)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _diff(name: str, before: bytes | None, after: str) -> dict[str, str]:
    text = (before or b"").decode("utf-8", "replace")
    return {"before": text, "after": after, "before_header": name, "after_header": name}
