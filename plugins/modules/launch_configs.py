#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: launch_configs
short_description: Write the launch configs of all servers of a plan
version_added: 0.1.0
description:
  - Renders one launch config for each server of a plan from a template of the calling role, and writes them and the
    record of what is deployed in one call for any number of servers.
  - Either all files are written or none. Launch configs of servers that are no longer in the plan are removed.
  - A deployment whose servers were all ready is kept when another takes its place, for M(magi.llama.rollback). Launch
    configs that are written again for the same servers with the same revisions are no other deployment.
  - Does not start or stop servers; use M(magi.llama.server_state).
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  service_manager:
    description: The service manager on this host.
    type: str
    choices: [systemd, supervisor, container]
    required: true
  state_dir:
    description: Folder on the host that holds the record and, with supervisor, the launch configs.
    type: path
    required: true
  plan:
    description:
      - The fact C(llama_plan) of M(magi.llama.server_plan).
      - Templates can use each server as C(server) and O(state_dir) as C(state_dir), besides the role's variables.
    type: dict
    required: true
  deployed:
    description:
      - The return value RV(magi.llama.server_plan#module:deployed) of M(magi.llama.server_plan). If it matches the
        files to write, the host is not contacted again.
    type: dict
  template:
    description:
      - Template for a server, looked for in the role's C(templates).
      - By default C(systemd.service.j2) or C(supervisor.program.conf.j2).
    type: str
  common_template:
    description:
      - Template for the config that the servers share.
      - By default C(magi-llama.target.j2) or C(supervisord.conf.j2).
    type: str
  allow_addresses:
    description:
      - Who may reach servers that listen on other than a loopback address, by addresses, networks, and V(gateways) for
        the hosts of that group. The template has the addresses in the variable C(allow_addresses).
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: Renders the templates on the controller.
seealso:
  - module: magi.llama.server_plan
  - module: magi.llama.server_state
  - module: magi.llama.rollback
"""

EXAMPLES = r"""
- name: Write the launch configs
  magi.llama.launch_configs:
    service_manager: systemd
    state_dir: /var/lib/magi-llama
    plan: "{{ llama_plan }}"
"""

RETURN = r"""
changed:
  description: Whether any file was written or removed.
  returned: always
  type: bool
written:
  description: Paths of the files that were written, or would be written in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/system/magi-llama-qwen3-8b-q4_k_m.service]
removed:
  description: Paths of the launch configs that were removed, or would be removed in check mode.
  returned: success
  type: list
  elements: str
  sample: []
configs:
  description: SHA-256 of each launch config of the plan, by path.
  returned: success
  type: dict
  sample: {"/etc/systemd/system/magi-llama-qwen3-8b-q4_k_m.service": "9f86d081884c7d65…"}
drift:
  description: >-
    What is to be written or removed, by the name of the server, or by path for the shared one. Needs O(deployed).
  returned: success
  type: dict
  sample: {"qwen3-8b-q4_k_m": "to write the launch config /etc/systemd/system/magi-llama-qwen3-8b-q4_k_m.service"}
"""

from ansible_collections.magi.llama.plugins.module_utils._arguments.launch_configs import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import record_of
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import snapshot_if_good
from ansible_collections.magi.llama.plugins.module_utils._deployment.shared import note_use
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import (
    File,
    current_text,
    files_to_write,
    refuse_foreign,
    stale_files,
    write_all,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.document import PLAN
from ansible_collections.magi.llama.plugins.module_utils._services.table import managed_files


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    given["state_dir"] = plain_path(given["state_dir"])
    configs = [File(entry["path"], entry["content"].encode(), int(entry["mode"], 8)) for entry in given["configs"]]
    managed = managed_files(given["state_dir"])
    record = record_of(PLAN.load(given["plan"]), given["service_manager"])
    refuse_foreign(configs, managed)
    launch, stale = files_to_write(configs), stale_files(managed, [file.path for file in configs])
    before = snapshot_if_good(given["state_dir"], record)
    state, old = state_files(given["state_dir"], record, before, configs=configs)
    # State files are written first, so that the next run detects an interrupted one.
    write, remove = [*state, *launch], [*stale, *old]
    diff = [_diff(file.path, file.content.decode()) for file in launch] + [_diff(path, "") for path in stale]
    if not module.check_mode and (write or remove):
        renew(given["state_dir"], given["run_id"])
        write_all(write, remove)
        note_use(given["state_dir"], record)
    return {
        "changed": bool(write or remove),
        "written": [file.path for file in write],
        "removed": remove,
        "diff": diff,
    }


def _diff(path: str, after: str) -> dict:
    return {"before": current_text(path), "after": after, "before_header": path, "after_header": path}


if __name__ == "__main__":
    main()
