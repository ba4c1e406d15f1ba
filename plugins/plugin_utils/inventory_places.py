# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Places next to an inventory that Ansible does not read as inventory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible import context
from ansible.inventory.manager import IGNORED

# Ansible reads every file below a folder that is an inventory, except those in hidden folders.
HIDDEN = ".magi-llama"
MANIFEST = "models.lock.yml"
PROFILES = "profiles"


def is_read_as_inventory(path: str) -> bool:
    """Whether an inventory of this run is a folder in which Ansible reads this path too."""
    for source in map(str, context.CLIARGS.get("inventory") or ()):
        inside = os.path.relpath(path, source)
        if os.path.isdir(source) and not inside.startswith(".."):
            return not any(IGNORED.search(os.fsencode(part)) for part in Path(inside).parts)
    return False


def next_to_inventory(name: str, *, folder: str) -> str:
    """Where a file of ours belongs: next to the inventory, or in the hidden folder where Ansible would read it.

    folder is the inventory's folder.
    """
    plain = os.path.join(folder, name)
    return os.path.join(folder, HIDDEN, name) if is_read_as_inventory(plain) else plain


def existing_manifest(path: str) -> str:
    """The manifest to read: the one at its path, else one that is still next to the inventory; empty if none is."""
    hidden, name = os.path.split(path)
    former = os.path.join(os.path.dirname(hidden), name) if os.path.basename(hidden) == HIDDEN else path
    return next((one for one in (path, former) if os.path.exists(one)), "")


def misplaced(folders: Iterable[Any]) -> list[str]:
    """Return a warning for each manifest and folder of profiles that Ansible reads as inventory."""
    found = []
    for folder in dict.fromkeys(str(one) for one in folders if one):
        for name in (PROFILES, MANIFEST):
            path = os.path.join(folder, name)
            if os.path.exists(path) and is_read_as_inventory(path):
                found.append(_advice(path, next_to_inventory(name, folder=folder)))
    return found


def _advice(path: str, place: str) -> str:
    if os.path.exists(place):
        return f"Ansible reads {path} as inventory, and {place} is used before it: merge and remove it."
    # The folder once: a line that people see has 500 characters.
    folder, name = os.path.split(path)
    hidden = os.path.relpath(os.path.dirname(place), folder)
    move = f"cd {folder} && mkdir -p {hidden} && mv {name} {hidden}/"
    return f"Ansible reads {name} next to the inventory as inventory too, with warnings: {move}"
