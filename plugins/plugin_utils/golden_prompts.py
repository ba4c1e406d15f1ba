# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The file of golden prompts, on the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._health.prompts import validate_prompts
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_yaml


def read_prompts(loader: DataLoader, value: Any) -> list[dict[str, Any]]:
    """Return the prompts of a file, a path from the working directory. Raises AnsibleActionFail."""
    path = Path(str(value)).expanduser().absolute()
    if not path.is_file():
        raise AnsibleActionFail(f'rollout_prompts is "{value}": there is no file {path} on the controller.')
    try:
        return validate_prompts(load_yaml(loader, str(path), "rollout_prompts"), f"rollout_prompts ({path})")
    except MagiError as error:
        raise AnsibleActionFail(str(error)) from error
