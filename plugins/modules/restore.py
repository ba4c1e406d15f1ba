#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: restore
short_description: Bring the state of a host back from a backup
version_added: 0.2.0
description:
  - Writes the deployment and the registry of an archive of M(magi.llama.backup) to a host, all of it or nothing. The
    state that is there is kept in an archive of its own before.
  - No server is changed. The next run of the playbook C(site) brings the servers to that state.
  - An archive that is truncated, was changed or is of another host is an error.
  - Needs the host's lock, see M(magi.llama.run_lock).
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.backup
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  at:
    description: Time of the archive, such as V(20261128T021500Z), or V(latest).
    type: str
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: The archives are on the controller.
seealso:
  - module: magi.llama.backup
  - module: magi.llama.run_lock
"""

EXAMPLES = r"""
- name: Restore the state of the host
  magi.llama.restore:
    state_dir: /var/lib/magi-llama
    registry_path: /var/lib/magi-llama/registry.json
    at: latest
"""

RETURN = r"""
written:
  description: Paths of the files on the host that were written, or would be written in check mode.
  returned: success
  type: list
  elements: str
taken_at:
  description: Time of the archive.
  returned: success
  type: str
  sample: 20261128T021500Z
"""

from ansible_collections.magi.llama.plugins.module_utils._archive.restore import changes, diff_of
from ansible_collections.magi.llama.plugins.module_utils._archive.state import places, unpacked
from ansible_collections.magi.llama.plugins.module_utils._arguments.restore import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    state_dir = plain_path(given["state_dir"])
    paths = places(state_dir, given["registry_path"], given["api_key_file"] if given["keys"] else None)
    files = changes(unpacked(given["files"]), paths)
    diff = diff_of(files, paths)
    if not module.check_mode:
        renew(state_dir, given["run_id"])
        write_all(files)
    return {"changed": bool(files), "written": [file.path for file in files], "diff": diff}


if __name__ == "__main__":
    main()
