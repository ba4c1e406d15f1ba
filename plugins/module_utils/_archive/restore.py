# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Writing a host's state again: which files differ, and what a diff shows of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from .._core.ownership import require_trusted
from .._launch.config_files import File, current_text, file_at
from .state import KEYS, MODES, StateError, StateFile

# A registry of thousands of models is too long to read.
MAX_DIFF_BYTES = 1 << 20
HIDDEN = "(API keys)\n"


def changes(files: Sequence[StateFile], paths: Mapping[str, str]) -> list[File]:
    """Return the files to write. Raises StateError for one without a place, OwnershipError for a place of others."""
    found = []
    for file in files:
        if file.name not in paths:
            variable = "servers_api_key_file" if file.name == KEYS else "registry_path"
            raise StateError(
                f"The backup has {file.name}, for which the host has no place. Nothing was changed. Set {variable}, as "
                "it was when the backup was made."
            )
        path = paths[file.name]
        require_trusted(path)
        before = file_at(path)
        if before is None or before.content != file.content:
            if before is not None and file.name == KEYS:
                # A key file may be readable for a group.
                status = os.stat(path)
                found.append(File(path, file.content, before.mode & 0o640, (status.st_uid, status.st_gid)))
            else:
                found.append(File(path, file.content, MODES[file.name]))
    return found


def diff_of(files: Sequence[File], paths: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the differences as Ansible shows them, without any key."""
    return [
        {
            "before_header": file.path,
            "after_header": file.path,
            "before": "" if file.path == paths.get(KEYS) else _shown(current_text(file.path)),
            "after": HIDDEN if file.path == paths.get(KEYS) else _shown(file.content.decode("utf-8", "replace")),
        }
        for file in files
    ]


def _shown(text: str) -> str:
    return text if len(text) <= MAX_DIFF_BYTES else f"({len(text)} bytes)\n"
