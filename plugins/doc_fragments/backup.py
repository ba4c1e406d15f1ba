# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of modules that keep or restore state; their types are in module_utils/_arguments/backup.py."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  registry_path:
    description: The registry file on the host.
    type: path
  api_key_file:
    description: File with the servers' API keys; V(auto) is the file C(api-keys) in O(state_dir).
    type: path
  keys:
    description:
      - Include the API keys, encrypted by ansible-vault with the vault password of the run.
    type: bool
    default: false
  dir:
    description: Folder of the archives on the controller, by default C(backups) next to the inventory.
    type: path
  keep:
    description: Which archives are kept when a new one is written; the newest always is.
    type: dict
    suboptions:
      last:
        description: The last ones.
        type: int
        default: 10
      daily:
        description: The newest of each of so many days.
        type: int
        default: 7
      weekly:
        description: The newest of each of so many weeks.
        type: int
        default: 4
      monthly:
        description: The newest of each of so many months.
        type: int
        default: 12
"""
