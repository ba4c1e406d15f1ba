#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup
short_description: Keep the state of a host on the controller
version_added: 0.2.0
description:
  - Writes the state of a host that cannot be computed again, the deployment and the registry, to an archive on the
    controller, unless the newest one has that state already.
  - Archives are C(DIR/HOST/TIME.tar.zst), readable by their owner only, each with a checksum file next to it.
  - A host on which nothing is deployed has no state. One whose state is damaged, or cannot be written to the archive,
    is an error.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.backup
options:
  state_dir:
    description: The servers' state directory. Either this or O(console_database) is required.
    type: path
  console_database:
    description:
      - The console's database instead, which is copied while the console may use it. Its archives are
        C(DIR/HOST/console/TIME.tar.zst).
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: The archives are on the controller.
seealso:
  - module: magi.llama.restore
"""

EXAMPLES = r"""
- name: Keep the state of the host
  magi.llama.backup:
    state_dir: /var/lib/magi-llama
    registry_path: /var/lib/magi-llama/registry.json
"""

RETURN = r"""
path:
  description: The archive with the state, V(null) if the host has none.
  returned: success
  type: str
  sample: /srv/fleet/backups/gpu-1/20261128T021500Z.tar.zst
removed:
  description: Times of the archives that are not kept any more.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.magi.llama.plugins.module_utils._archive.state import DATABASE, places, read_state, to_answer
from ansible_collections.magi.llama.plugins.module_utils._arguments.backup import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    if given["console_database"]:
        paths = {DATABASE: given["console_database"]}
    else:
        keys = given["api_key_file"] if given["keys"] else None
        paths = places(plain_path(given["state_dir"]), given["registry_path"], keys)
    return {"changed": False, "state": to_answer(read_state(paths), given["known"])}


if __name__ == "__main__":
    main()
