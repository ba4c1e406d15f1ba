#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: wait_for_health
short_description: Wait until servers are healthy
version_added: 0.1.0
description:
  - Polls all servers in parallel until each is ready, has died or has timed out. While it waits, it shows a line for
    each server that becomes ready or fails.
  - Ready means that C(/health) returns 200, the server's own process listens on the port, and C(/props) names the
    planned model.
  - A server that dies is reported immediately, with its exit code and its last log lines.
  - A server with an API key file must refuse a request without a key. One that answers it is stopped, and the task
    fails even with O(allow_degraded).
  - A server that is not ready, and that the deployment newly opened to other machines, is stopped.
  - A server that ended with exit code 1 (a configuration error) is stopped, so that the service manager does not
    restart it.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
options:
  state_dir:
    description: The servers' state directory.
    type: path
    required: true
  servers:
    description: Names of the servers to wait for, by default all deployed servers.
    type: list
    elements: str
    default: []
  timeout:
    description: Time-out in seconds for each server, by default its C(max_startup_time).
    type: float
  interval:
    description: Maximum seconds between two polls. The first polls are more frequent.
    type: float
    default: 2.0
  deep:
    description:
      - Also probe each server with a few tokens (or an embedding or ranking, depending on its kind).
      - The answer may take O(timeout) seconds, by default 30.
    type: bool
    default: false
  allow_degraded:
    description: Succeed even if a server is not ready.
    type: bool
    default: false
  release:
    description:
      - Release the run's lock once every server is settled, which saves a call of M(magi.llama.run_lock).
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    support: full
    description: Runs partly on the controller, which shows the progress.
seealso:
  - module: magi.llama.server_state
"""

EXAMPLES = r"""
- name: Wait until every server is healthy
  magi.llama.wait_for_health:
    state_dir: /var/lib/magi-llama

- name: Probe one server with a few tokens without failing
  magi.llama.wait_for_health:
    state_dir: /var/lib/magi-llama
    servers: [qwen3-8b-q4_k_m]
    deep: true
    timeout: 300
    allow_degraded: true
"""

RETURN = r"""
msg:
  description: >-
    The number of ready servers, and for every other server its state, the likely cause and fix, and its last log lines.
  returned: always
  type: str
  sample: 4 of 4 servers are ready
ready:
  description: How many servers are ready.
  returned: when the servers were asked
  type: int
  sample: 4
failed_servers:
  description: Names of the servers that are not ready.
  returned: when the servers were asked
  type: list
  elements: str
  sample: []
unprotected_servers:
  description: Names of the servers that have an API key file and yet answered a request without a key.
  returned: when the servers were asked
  type: list
  elements: str
  sample: []
complete:
  description: Whether every server is ready, dead or timed out.
  returned: when the servers were asked
  type: bool
released:
  description: Whether the run's lock was released.
  returned: when the servers were asked
  type: bool
running:
  description: Every running server on the host, deployed or not, with the revision that it was launched with.
  returned: when RV(complete)
  type: dict
  sample: {"qwen3-8b-q4_k_m": "5f1c2d3e4a5b"}
servers:
  description: Each server.
  returned: when the servers were asked
  type: list
  elements: dict
  contains:
    name:
      description: The server's name.
      type: str
      sample: qwen3-8b-q4_k_m
    port:
      description: Its port.
      type: int
      sample: 8080
    tier:
      description: Its model's quality tier.
      type: str
      sample: Q4
    pid:
      description: PID of its process, V(null) if it is not running.
      type: int
      sample: 12345
    state:
      description: >-
        V(ready), V(sleeping) (its first request starts it), V(failed) (it died), or its state at the time-out, one
        of V(loading), V(not_listening),
        V(hung), V(unhealthy), V(wrong_identity), V(unprotected), V(on_cpu).
      type: str
      sample: ready
    is_ready:
      description: Whether it is ready, or sleeps.
      type: bool
    is_settled:
      description: Whether there is nothing more to wait for.
      type: bool
    became_ready:
      description: Whether the process was observed ready for the first time.
      type: bool
    seconds_to_ready:
      description: >-
        Seconds from the start of its process until it was ready, V(null) if that was not observed.
      type: float
      sample: 1.8
    token_seconds:
      description: Response time of the O(deep) probe in seconds, V(null) if there was none.
      type: float
      sample: 0.12
    tokens_per_second:
      description: Speed of generation in that probe, V(null) where the server did not report it.
      type: float
      sample: 216.4
    restarts:
      description: Number of restarts after a crash since the last deliberate start.
      type: int
      sample: 0
    exit_code:
      description: Exit code of its process, 128 plus the number for a signal, V(null) if it did not end.
      type: int
    exit_text:
      description: The same, human-readable.
      type: str
      sample: exit code 1
    detail:
      description: What is wrong.
      type: str
      sample: exit code 1
    fix:
      description: The likely cause and its fix, V(null) if unknown.
      type: str
    log_tail:
      description: Its last log lines, if it is not ready.
      type: list
      elements: str
      sample: []
"""

import time
from collections.abc import Callable
from functools import partial

from ansible_collections.magi.llama.plugins.module_utils._arguments.wait_for_health import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.commands import (
    CommandTimeoutError,
    ids_of,
    output_of,
)
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.gpu_processes import TOOL_FOLDERS, held_bytes
from ansible_collections.magi.llama.plugins.module_utils._core.processes import all_processes, listeners, processes
from ansible_collections.magi.llama.plugins.module_utils._core.readable import unreadable
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import LockError, release, renew
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import (
    chosen,
    read_previous_deployment,
    read_record,
)
from ansible_collections.magi.llama.plugins.module_utils._deployment.rollback import note_good
from ansible_collections.magi.llama.plugins.module_utils._deployment.shared import note_use
from ansible_collections.magi.llama.plugins.module_utils._health.breakdown import compared, deviation_warning
from ansible_collections.magi.llama.plugins.module_utils._health.machine import Machine
from ansible_collections.magi.llama.plugins.module_utils._health.observations import (
    note_memory,
    ready_revisions,
    update_observations,
)
from ansible_collections.magi.llama.plugins.module_utils._health.on_cpu import planned_vram, with_servers_on_cpu
from ansible_collections.magi.llama.plugins.module_utils._health.wait import (
    summary,
    to_be_stopped,
    wait,
    with_holders,
    with_stops,
)
from ansible_collections.magi.llama.plugins.module_utils._health.waking import split, wake_and_wait
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceDriver
from ansible_collections.magi.llama.plugins.module_utils._services.table import (
    WITHOUT_DEPLOYMENT,
    driver_for,
    find_manager,
)


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    state_dir = given["state_dir"] = plain_path(given["state_dir"])
    record = read_record(state_dir)
    driver = driver_for(record, state_dir)
    outcomes = _wait(module, record, driver)
    is_lost = False
    # A probe without a run, such as verify's, only looks.
    if not module.check_mode and given["run_id"] is not None:
        # Waiting does not need the lock.
        try:
            renew(state_dir, given["run_id"])
        except LockError:
            # The other run decides about the servers.
            is_lost = True
        else:
            outcomes = _stop_bad(state_dir, record, driver, outcomes)
    result = update_observations(
        state_dir, outcomes, _launched(state_dir, outcomes), write=not (module.check_mode or is_lost)
    )
    if not (module.check_mode or is_lost):
        _note_memory(module, record, driver, result)
        note_use(state_dir, record)
        note_good(state_dir, record)
    answer = {"changed": False, "servers": result, **summary(result)}
    if answer["complete"]:
        running = processes(state_dir)
        answer["running"] = {name: process.env.get("MAGI_LLAMA_REVISION", "") for name, process in running.items()}
    answer["released"] = (
        given["release"] and answer["complete"] and not module.check_mode and release(state_dir, given["run_id"])
    )
    answer["failed"] = bool(
        answer["complete"]
        and answer["failed_servers"]
        and (answer["unprotected_servers"] or not given["allow_degraded"])
    )
    return answer


def _wait(module: Module, record: dict, driver: ServiceDriver) -> list:
    given = module.params
    machine = Machine(driver, given["state_dir"], given["deep"], given["timeout"], _reader(record))
    wait_for = partial(
        wait,
        machine=machine,
        clock=time.monotonic,
        sleep=time.sleep,
        interval=given["interval"],
        timeout=given["timeout"],
        # Check mode started nothing that could become ready.
        slice_seconds=0.0 if module.check_mode else given["slice"],
        elapsed=given["elapsed"],
        baseline=given["baseline"],
    )
    servers, asleep = chosen(record, given["servers"]), []
    if given["deep"] and not module.check_mode:
        servers, asleep = split(servers, machine)
    outcomes = [*(wait_for(servers) if servers else []), *wake_and_wait(asleep, wait_for)]
    outcomes = _check_gpus(module, record, outcomes)
    failed = [outcome.port for outcome in outcomes if outcome.state == "failed"]
    return with_holders(outcomes, listeners(failed)) if failed else outcomes


def _reader(record: dict) -> Callable | None:
    """Return what finds the files that the servers' user may not read; None if the servers have no sandbox."""
    users = record.get("users") or []
    if not users or not find_manager(record["service_manager"] or WITHOUT_DEPLOYMENT).hides_folders:
        return None

    def ask(paths: list) -> list:
        try:
            return unreadable(paths, ids_of(users[0]))
        except CommandTimeoutError:
            return paths

    return ask


def _check_gpus(module: Module, record: dict, outcomes: list) -> list:
    """Return the outcomes, with servers that run on the CPU instead of their GPU as failed."""
    servers = {server["name"]: server for server in record["servers"]}
    ready = [outcome for outcome in outcomes if outcome.is_ready and outcome.pid]
    if not any(planned_vram(servers.get(outcome.name, {})) for outcome in ready):
        return outcomes

    def tool(command: list) -> str | None:
        path = module.get_bin_path(command[0], opt_dirs=list(TOOL_FOLDERS))
        return None if path is None else output_of(path, *command[1:])

    found = all_processes(module.params["state_dir"], pids=[outcome.pid for outcome in ready])
    children = {process.pid: process.children for process in found}
    return with_servers_on_cpu(outcomes, record["servers"], held_bytes(tool), children)


def _stop_bad(state_dir: str, record: dict, driver: ServiceDriver, outcomes: list) -> list:
    """Stop servers that must not continue; return the outcomes with the reasons."""
    opened = []
    if any(outcome.is_settled and not outcome.is_ready for outcome in outcomes):
        # A module compiles at every call what it imports.
        from ansible_collections.magi.llama.plugins.module_utils._deployment.exposure import newly_opened

        before = read_previous_deployment(state_dir)
        opened = newly_opened(record["servers"], before.record["servers"] if before else [], ready_revisions(state_dir))
    bad = to_be_stopped(outcomes, driver.status([outcome.name for outcome in outcomes]), opened)
    if bad:
        driver.stop(bad, max(float(server.get("stop_timeout", 30)) for server in chosen(record, bad)))
    return with_stops(outcomes, [name for name in bad if name in opened])


def _note_memory(module: Module, record: dict, driver: ServiceDriver, result: list) -> None:
    """Note what servers that became ready have loaded, next to the estimate, and warn where the two differ."""
    pids = {server["name"]: server["pid"] for server in result if server["became_ready"] and server["pid"]}
    logging = {
        server["name"]: server["memory"]
        for server in record["servers"]
        if server["name"] in pids and "--log-jsonl" in server["argv"]
    }
    if not logging:
        return
    logs = driver.start_logs({name: pids[name] for name in logging})
    found = {name: compared(memory, logs.get(name, ())) for name, memory in logging.items()}
    known = {name: memory for name, memory in found.items() if memory is not None}
    note_memory(module.params["state_dir"], known)
    for name, memory in known.items():
        # Of a projector or a draft model, llama-server counts other parts than the plan.
        warning = None if "total_bytes" in logging[name].get("estimates", ()) else deviation_warning(name, memory)
        if warning:
            module.warn(warning)


def _launched(state_dir: str, outcomes: list) -> dict:
    """Return the revision that each ready server's process was launched with."""
    pids = [outcome.pid for outcome in outcomes if outcome.is_ready and outcome.pid]
    found = all_processes(state_dir, pids=pids) if pids else []
    return {process.name: process.env.get("MAGI_LLAMA_REVISION", "") for process in found}


if __name__ == "__main__":
    main()
