#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollback
short_description: Restore the previous good deployment
version_added: 0.1.0
description:
  - Restores the launch configs, the record and the llama-server of the last earlier deployment whose servers were all
    ready, from the copies that M(magi.llama.launch_configs) and M(magi.llama.runtime) keep on the host.
  - Fails if there is no such deployment, or if it is the one that runs already, as after a rollback.
  - Does not start or stop servers. The fact C(llama_plan) has the actions for M(magi.llama.server_state).
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.downtime
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  keep_binary:
    description: Restore the launch configs only, and keep the installed llama-server.
    type: bool
    default: false
  user:
    description:
      - User that the servers run as. As root, llama-server is asked what it is as this user; without one, or where that
        user does not exist yet, as one without rights.
    type: str
  binary_owner:
    description: User besides root who may own llama-server and the folders above it.
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - Where the previous deployment runs already there is nothing to return to, which is an error.
  action:
    support: full
    description: Passes the id of the run to the host.
seealso:
  - module: magi.llama.launch_configs
  - module: magi.llama.runtime
  - module: magi.llama.server_state
"""

EXAMPLES = r"""
- name: Return to the previous deployment
  magi.llama.rollback:
    state_dir: /var/lib/magi-llama
"""

RETURN = r"""
restored:
  description: Prefixes whose previous llama-server was restored, or would be restored in check mode.
  returned: success
  type: list
  elements: str
  sample: [/opt/magi-llama/runtime]
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
ansible_facts:
  description: The facts C(llama_plan) and C(llama_profile).
  returned: success
  type: dict
  contains:
    llama_plan:
      description: The servers of the deployment, each with C(action) and C(reason) as in M(magi.llama.server_plan).
      type: dict
    llama_profile:
      description: The name of the deployment's profile and how it starts its servers.
      type: dict
"""

from functools import partial

from ansible_collections.magi.llama.plugins.module_utils._arguments.rollback import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.commands import ids_of, run_command
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.processes import listeners, processes
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
from ansible_collections.magi.llama.plugins.module_utils._deployment.deployed_waves import deployed_waves
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import (
    DamagedRecordError,
    empty_record,
    read_record,
)
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import (
    deployment_before,
    planned,
    prefixes_to_restore,
    read_previous,
    refuse_current,
    starting,
)
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import (
    current_text,
    files_to_write,
    refuse_foreign,
    stale_files,
    write_all,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.document import PLAN
from ansible_collections.magi.llama.plugins.module_utils._runtime.prefix import restore_previous
from ansible_collections.magi.llama.plugins.module_utils._runtime.probe import ProbeError, probe
from ansible_collections.magi.llama.plugins.module_utils._services.table import (
    MANAGERS,
    managed_files,
    open_sockets,
)


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    given["state_dir"] = state_dir = plain_path(given["state_dir"])
    before = read_previous(state_dir) if given["keep_binary"] else deployment_before(state_dir)
    restored = prefixes_to_restore(before, lambda path: _identity(path, given), given["keep_binary"])
    now = _deployed(state_dir)
    running = processes(state_dir)
    servers = planned(before, now, running, _sockets(state_dir, now))
    if not restored:
        refuse_current(state_dir, before, now, servers)
    servers, change = deployed_waves(servers, {**before.record, "servers": now}, running, given)
    refuse_foreign(before.files, managed_files(state_dir))
    launch = files_to_write(before.files)
    stale = stale_files(managed_files(state_dir), [file.path for file in before.files])
    # It is also kept as the previous deployment, so that a second rollback never goes to the one that did not work.
    state, old = state_files(state_dir, before.record, before, configs=before.files)
    write, remove = [*state, *launch], [*stale, *old]
    diff = [_diff(file.path, file.content.decode()) for file in launch] + [_diff(path, "") for path in stale]
    if not module.check_mode and (restored or write or remove):
        renew(state_dir, given["run_id"])
        for prefix in restored:
            restore_previous(prefix)
        write_all(write, remove)
    name = before.record["profile"]
    content = {"start": before.record.get("start"), "servers": servers, "memory": {}, "warnings": []}
    plan = PLAN.stamp({"profile": name, **content, **change})
    profile = {"name": name, "description": "the deployment before", "source": "", "start": starting(before)}
    return {
        "changed": bool(restored or write or remove or any(server["action"] != "keep" for server in servers)),
        "restored": restored,
        "written": [file.path for file in write],
        "removed": remove,
        "diff": diff,
        "ansible_facts": {"llama_plan": plan, "llama_profile": profile},
    }


def _deployed(state_dir: str) -> list:
    try:
        return read_record(state_dir)["servers"]
    except DamagedRecordError:
        return empty_record()["servers"]


def _sockets(state_dir: str, now: list) -> dict:
    """The servers that a request would start."""
    ports = {int(server["port"]) for server in now if "on_demand" in server}
    held = listeners(ports) if ports else {}
    return {name: port for manager in MANAGERS for name, port in open_sockets(manager, state_dir, held).items()}


def _identity(path: str, given: dict) -> str | None:
    ask = partial(run_command, user=ids_of(given["user"]))
    try:
        return probe(path, ask, owner=given["binary_owner"])["identity"]
    except ProbeError:
        return None


def _diff(path: str, after: str) -> dict:
    return {"before": current_text(path), "after": after, "before_header": path, "after_header": path}


if __name__ == "__main__":
    main()
