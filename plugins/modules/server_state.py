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
  - First stops all servers to be stopped or restarted, in parallel, then starts servers one after another. After each
    start it waits until the server is ready, for at most a quarter of a second, since servers that load at the same
    moment slow each other down.
  - A stop is SIGTERM, a second SIGTERM after a third of the server's stop time-out, and SIGKILL after all of it. If one
    SIGTERM does not end the server, the stop is stuck. The result has the signal.
  - A started server is not yet ready. M(magi.llama.wait_for_health) waits for that.
  - Only affects servers of the state directory. A process that the service manager no longer tracks is ended before its
    server is restarted.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.downtime
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  state:
    description: >-
      State to bring O(servers) into. V(started) and V(stopped) skip servers that are already in that state,
      V(restarted) restarts all of them.
    type: str
    choices: [started, stopped, restarted]
  servers:
    description: Names of the servers to apply O(state) to, by default all deployed servers.
    type: list
    elements: str
    default: []
  skip_missing:
    description: Skip the O(servers) that are not deployed on this host. Otherwise they are an error.
    type: bool
    default: false
  actions:
    description:
      - Maps server names to V(start), V(restart) or V(stop), instead of O(state).
      - A server that is not in the record any more is removed from the service manager when it is stopped. A stand-in
        is removed from the record then.
    type: dict
  concurrent:
    description: >-
      Start all servers without waiting until each is healthy. Otherwise start one, wait for it, then start the next.
      The default comes from the deployed profile.
    type: bool
  timeout:
    description: >-
      Seconds to wait for each server to become healthy if O(concurrent=false), by default its C(max_startup_time).
    type: float
  supervisord_path:
    description: Path of C(supervisord), by default the one found in O(state_dir) or C(PATH).
    type: path
  is_lasting:
    description:
      - Note O(actions) as what the servers are to be from now on, also after a reboot. With O(state) that is always so.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - Every call with V(restarted) restarts the servers.
  action:
    support: full
    description: Runs partly on the controller, which handles the servers one by one if O(concurrent=false).
seealso:
  - module: magi.llama.server_plan
  - module: magi.llama.wait_for_health
"""

EXAMPLES = r"""
- name: Apply the plan's actions
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
  description: The actions, one line per server.
  returned: success
  type: str
  sample: "qwen3-8b-q2_k: stopped, pid 4242 ended by SIGTERM in 0.2 s"
servers:
  description: The servers that were changed, or would be changed in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
      sample: qwen3-8b-q4_k_m
    action:
      description: The action, V(start), V(restart) or V(stop).
      type: str
      sample: restart
    pid_before:
      description: PID of its process before, V(null) if it was not running.
      type: int
      sample: 4242
    pid_after:
      description: PID of its process afterwards, V(null) if it is not running.
      type: int
      sample: 4343
    signal:
      description: >-
        The signal that ended its process, V(SIGTERM), V(second SIGTERM) or V(SIGKILL), V(null) if no process ended.
      type: str
      sample: SIGTERM
    seconds:
      description: Seconds until its process ended, V(null) if no process ended.
      type: float
      sample: 0.2
    stuck:
      description: Whether its stop was stuck, so that one SIGTERM did not end it.
      type: bool
      sample: false
    error:
      description: Why it could not be started, V(null) if there was no error.
      type: str
waves:
  description: >-
    In check mode with O(without_downtime), the steps of the change, as in the plan of M(magi.llama.server_plan).
  returned: in check mode
  type: list
  elements: dict
start_seconds:
  description: In check mode with O(without_downtime), the largest C(max_startup_time) of the servers that are changed.
  returned: in check mode
  type: int
  sample: 120
deployed:
  description: The O(servers) that are deployed on this host.
  returned: with O(skip_missing)
  type: list
  elements: str
  sample: [qwen3-8b-q4_k_m]
"""

from dataclasses import asdict

from ansible_collections.magi.llama.plugins.module_utils._arguments.server_state import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.processes import processes
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
from ansible_collections.magi.llama.plugins.module_utils._core.stand_ins import stand_ins
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import chosen, read_record
from ansible_collections.magi.llama.plugins.module_utils._health.observations import (
    note_seconds,
    note_started_configs,
    note_stops,
)
from ansible_collections.magi.llama.plugins.module_utils._health.pace import Pace
from ansible_collections.magi.llama.plugins.module_utils._health.pending import config_digests
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
    given = module.params
    given["state_dir"] = state_dir = plain_path(given["state_dir"])
    record = read_record(state_dir)
    deployed = {}
    if given["skip_missing"]:
        names = [server["name"] for server in record["servers"]]
        deployed = {"deployed": [name for name in names if name in given["servers"]]}
        if given["servers"] and not deployed["deployed"]:
            return {"changed": False, "msg": "nothing to do", "servers": [], **deployed}
        given["servers"] = deployed["deployed"]
    driver = driver_for(record, state_dir, given["supervisord_path"])
    todo = _todo(given, state_dir, record, driver)
    if module.check_mode:
        results = [{"name": name, "action": action} for name, action in todo.items()]
        steps = _steps(given, record, todo) if given["without_downtime"] else {}
        return {"changed": bool(todo), "msg": _planned(todo), "servers": results, **deployed, **steps}
    if todo:
        renew(state_dir, given["run_id"])
    leaving = [name for name, action in todo.items() if action == "stop"]
    if stand_ins(record["servers"]).keys() & set(leaving):
        from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import drop_stand_ins

        record = drop_stand_ins(state_dir, leaving)
    _note_intended(given, state_dir, record, todo)
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
    started = {result.name: result.pid_after for result in results if result.action != "stop"}
    note_started_configs(state_dir, started, config_digests(state_dir, record["service_manager"], started))
    note_stops(state_dir, {result.name: result for result in results if result.signal is not None})
    for result in results:
        if result.error is not None:
            module.warn(f"{result.name} could not be started: {result.error}")
    return {
        "changed": bool(results),
        "msg": "\n".join(result_lines(results)) or "nothing to do",
        "servers": [asdict(result) for result in results],
        **deployed,
    }


def _todo(given: dict, state_dir: str, record: dict, driver: ServiceDriver) -> dict:
    """Return the action of each server that needs one."""
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


def _note_intended(given: dict, state_dir: str, record: dict, todo: dict) -> None:
    """Note what the servers are to be, except where a run applies a plan: it has written that."""
    if given["actions"] is not None and not given["is_lasting"]:
        return
    # A module compiles at every call what it imports.
    from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import note_intended

    names = given["servers"] or [server["name"] for server in record["servers"]]
    intended = dict.fromkeys(names, "stopped" if given["state"] == "stopped" else "started")
    if given["actions"] is not None:
        intended = {name: "stopped" if action == "stop" else "started" for name, action in todo.items()}
    note_intended(state_dir, intended)


def _steps(given: dict, record: dict, todo: dict) -> dict:
    """The steps in which gateways are kept supplied, and how long a server may take to start in them."""
    from ansible_collections.magi.llama.plugins.module_utils._deployment.deployed_waves import deployed_waves

    servers = [{**server, "action": todo.get(server["name"], "keep")} for server in record["servers"]]
    _servers, change = deployed_waves(servers, record, processes(given["state_dir"]), given)
    limits = [int(server.get("max_startup_time") or 0) for server in record["servers"] if server["name"] in todo]
    return {"waves": change.get("waves", []), "start_seconds": max(limits, default=0)}


def _planned(todo: dict) -> str:
    return "\n".join(f"{name}: would {action}" for name, action in todo.items()) or "nothing to do"


if __name__ == "__main__":
    main()
