#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: server_state
short_description: Start, stop and restart servers in bulk
version_added: 0.1.0
description:
  - Stops what is to stop or restart, all servers at the same time, then starts what is to run, one after another. Each
    has the machine to itself until it is ready, but no longer than for a quarter of a second, as servers that load at
    the very same moment hinder each other.
  - A stop is graceful, SIGTERM first and SIGKILL after the server's deadline. The result says which was needed.
  - A started server is not yet ready. M(magi.llama.wait_for_health) waits for that.
  - Touches servers of the state directory only. A process of one that its service manager has lost is ended before
    the server is restarted.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  state:
    description: >-
      State to bring O(servers) into. V(started) and V(stopped) leave alone what is so already, V(restarted) restarts
      all of them.
    type: str
    choices: [started, stopped, restarted]
  servers:
    description: Names of the servers that O(state) is for, by default all that are deployed.
    type: list
    elements: str
    default: []
  actions:
    description:
      - A server's name to V(start), V(restart) or V(stop), in place of O(state).
      - A server that is no longer in the record is forgotten by the service manager when it is stopped.
    type: dict
  concurrent:
    description: >-
      Start all servers without waiting until one is healthy. Otherwise one is started and awaited, then the next. By
      default as the profile of the deployment says.
    type: bool
  timeout:
    description: >-
      Seconds that each server has to become healthy where O(concurrent=false), by default its own C(max_startup_time).
    type: float
  supervisord_path:
    description: The C(supervisord) to start, by default the one in O(state_dir) or C(PATH).
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - A restart is done each time.
  action:
    support: full
    description: Runs partly on the controller, which takes the servers one by one where O(concurrent=false).
seealso:
  - module: magi.llama.server_plan
  - module: magi.llama.wait_for_health
"""

EXAMPLES = r"""
- name: Do what the plan says
  magi.llama.server_state:
    state_dir: /var/lib/magi-llama
    actions:
      qwen3-8b-q4_k_m: restart
      qwen3-8b-q2_k: stop

- name: Stop every server
  magi.llama.server_state:
    state_dir: /var/lib/magi-llama
    state: stopped
"""

RETURN = r"""
changed:
  description: Whether any server was started, restarted or stopped.
  returned: always
  type: bool
msg:
  description: What was done, a line for each server.
  returned: success
  type: str
  sample: "qwen3-8b-q2_k: stopped, pid 4242 ended by SIGTERM in 0.2 s"
servers:
  description: What was done to each server that needed it; in check mode, what would be.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
      sample: qwen3-8b-q4_k_m
    action:
      description: What was done, V(start), V(restart) or V(stop).
      type: str
      sample: restart
    pid_before:
      description: Its process before, V(null) where it had none.
      type: int
      sample: 4242
    pid_after:
      description: Its process afterwards, V(null) where it has none.
      type: int
      sample: 4343
    signal:
      description: The signal that ended its process, V(SIGTERM) or V(SIGKILL), V(null) if no process ended.
      type: str
      sample: SIGTERM
    seconds:
      description: How many seconds its process took to end, V(null) if no process ended.
      type: float
      sample: 0.2
    error:
      description: Why it could not be started, V(null) where it could.
      type: str
"""

from dataclasses import asdict

from ansible_collections.magi.llama.plugins.module_utils._arguments.server_state import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.processes import processes
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import chosen, read_record
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import note_intended
from ansible_collections.magi.llama.plugins.module_utils._health.observations import note_seconds
from ansible_collections.magi.llama.plugins.module_utils._health.pace import Pace
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceDriver, strays, terminate
from ansible_collections.magi.llama.plugins.module_utils._services.table import driver_for, retire_others
from ansible_collections.magi.llama.plugins.module_utils._services.transitions import (
    actions_for,
    apply,
    check_actions,
    needed,
    outdated,
    result_lines,
)


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given, state_dir = module.params, plain_path(module.params["state_dir"])
    record = read_record(state_dir)
    driver = driver_for(record, state_dir, given["supervisord_path"])
    todo = _todo(given, state_dir, record, driver)
    if module.check_mode:
        results = [{"name": name, "action": action} for name, action in todo.items()]
        return {"changed": bool(todo), "msg": _planned(todo), "servers": results}
    if todo:
        renew(state_dir, given["run_id"])
    if given["actions"] is None:
        names = given["servers"] or [server["name"] for server in record["servers"]]
        note_intended(state_dir, names, "stopped" if given["state"] == "stopped" else "started")
    retire_others(record, state_dir)
    pace = Pace()
    results = apply(
        todo,
        record["servers"],
        driver,
        lambda statuses: strays(state_dir, statuses),
        lambda processes, timeout: terminate(processes, state_dir, timeout),
        pace.on_started,
    )
    pids = {result.name: result.pid_after for result in results}
    note_seconds(state_dir, {name: (pids[name], seconds) for name, seconds in pace.ready.items()})
    for result in results:
        if result.error is not None:
            module.warn(f"{result.name} could not be started: {result.error}")
    return {
        "changed": bool(results),
        "msg": "\n".join(result_lines(results)) or "nothing to do",
        "servers": [asdict(result) for result in results],
    }


def _todo(given: dict, state_dir: str, record: dict, driver: ServiceDriver) -> dict:
    """The action of each server that needs one."""
    if given["actions"] is None:
        statuses = driver.status([server["name"] for server in chosen(record, given["servers"])])
        unknown = {process.name for process in strays(state_dir, statuses)}
        actions = actions_for(given["state"], statuses, unknown)
    else:
        actions = check_actions(given["actions"], record["servers"])
        statuses = driver.status(list(actions))
        unknown = {process.name for process in strays(state_dir, statuses)}
    old = outdated(record["servers"], processes(state_dir))
    return needed(actions, statuses, unknown, record["servers"], old)


def _planned(todo: dict) -> str:
    return "\n".join(f"{name}: would {action}" for name, action in todo.items()) or "nothing to do"


if __name__ == "__main__":
    main()
