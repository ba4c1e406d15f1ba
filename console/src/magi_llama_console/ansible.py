# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the console's own calls of Ansible and those of its jobs find configuration, collections and secrets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .jobs.runner import clean_environment
from .settings import Settings

# Where ansible-core looks for collections if nothing says otherwise.
DEFAULT_COLLECTIONS = ("~/.ansible/collections", "/usr/share/ansible/collections")


def environment(settings: Settings) -> dict[str, str]:
    """Variables that Ansible is given in addition to the clean environment."""
    found = {
        "ANSIBLE_NOCOLOR": "1",
        # A run that is killed leaves its temporary files, with values of variables: never in a home that is the data
        # folder. Under systemd it is removed with the unit (PrivateTmp).
        "ANSIBLE_LOCAL_TEMP": os.environ.get("ANSIBLE_LOCAL_TEMP") or tempfile.gettempdir(),
    }
    if settings.checkout:
        found["ANSIBLE_COLLECTIONS_PATH"] = str(settings.checkout / "collections")
        if (config := settings.checkout / "ansible.cfg").is_file():
            found["ANSIBLE_CONFIG"] = str(config)
    return found


def secret_files(settings: Settings) -> dict[str, str]:
    """The names of files that Ansible reads itself; what is in them is never read by the console."""
    found = {
        "ANSIBLE_VAULT_PASSWORD_FILE": settings.vault_password_file,
        "ANSIBLE_PRIVATE_KEY_FILE": settings.private_key_file,
    }
    return {name: str(path) for name, path in found.items() if path}


def full_environment(settings: Settings) -> dict[str, str]:
    """The complete environment of a call by the console itself, such as ansible-inventory."""
    clean = clean_environment(os.environ, settings.pass_environment)
    return clean | environment(settings) | secret_files(settings)


def collection_folders(settings: Settings) -> list[str]:
    """The folders that have ansible_collections."""
    if settings.checkout:
        return [str(settings.checkout / "collections")]
    configured = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    names = configured.split(":") if configured else list(DEFAULT_COLLECTIONS)
    return [str(Path(name).expanduser()) for name in names if name]
