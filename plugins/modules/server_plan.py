#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: server_plan
short_description: Compare the servers in a profile with the running servers
version_added: 0.1.0
description:
  - Computes every server of a host, with name, port, command line, memory, an action and its reason.
  - Reads the registry, the deployment record, the running processes (C(/proc)), the ports in use, the host's memory
    and its GPUs. Changes nothing.
  - A server keeps its port for as long as it exists, and its name keeps the port afterwards. A port held by an
    unmanaged process is skipped for a new server and is an error for an existing one, or for one whose port is set.
  - Unknown models and flags, too many servers for the port range, too little memory and model files that the servers'
    user may not read are errors here, before anything is changed.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.downtime
options:
  registry_path:
    description: The registry file on the host, as written by M(magi.llama.gguf_registry).
    type: path
    required: true
  registry:
    description:
      - The registry itself, for check mode, in which the file may not have been written.
      - By default O(registry_path) is read.
    type: dict
  profile:
    description: The fact C(llama_profile) of M(magi.llama.profile).
    type: dict
    required: true
  runtime:
    description: The fact C(llama_runtime) of M(magi.llama.runtime).
    type: dict
    required: true
  state_dir:
    description: The state directory, which contains the deployment record.
    type: path
    required: true
  service_manager:
    description: The service manager on this host.
    type: str
    choices: [systemd, supervisor, container]
    required: true
  port_range_start:
    description: First port of the range.
    type: int
    default: 8080
  port_range_end:
    description: Last port of the range.
    type: int
    default: 8099
  host:
    description: Address that the servers listen on.
    type: str
    default: 127.0.0.1
  api_key_file:
    description:
      - File on the host with the servers' API keys, one per line.
      - V(auto) is the file C(api-keys) in O(state_dir), which M(magi.llama.begin_run) generates.
    type: path
  allow_powerful:
    description:
      - Allow parameters that give clients power over the host, such as C(tools), C(rpc) or C(media_path), for servers
        with an API key.
    type: bool
    default: false
  stop_timeout:
    description: Seconds between the first SIGTERM and SIGKILL.
    type: int
    default: 30
  memory_overcommit:
    description: Allow servers that need more memory than the budget, the host's RAM or its GPUs have.
    type: bool
    default: false
  strict:
    description: Fail if the model of a deployed server that the profile enables is missing or was rejected.
    type: bool
    default: false
  prune:
    description: Stop and forget deployed servers whose model is missing or was rejected, also those that run.
    type: bool
    default: false
  require_gpu:
    description:
      - Whether a server that is planned on a GPU must hold its memory there after its start. V(auto) is yes where a
        tool says what it holds; V(true) makes it a failure too where it is unknown, and refuses a plan in which a
        server has no layers on a GPU.
    type: str
    choices: [auto, 'true', 'false']
    default: auto
  move_on_conflict:
    description: Give a server a new port if an unmanaged process holds its port, instead of failing.
    type: bool
    default: false
  ports:
    description:
      - Ports of servers, by server name. They have to be in the range, and win over C(port) in the profile.
      - No other server gets such a port, also where the host lacks the server that it is set for.
    type: dict
    default: {}
  cpu_expected_busy:
    description:
      - How many servers that compute on the CPU are busy at once, for C(threads) V(auto) in a profile's parameters.
        By default all of them, so that their threads do not exceed the cores.
    type: int
  restart:
    description:
      - Whether a server that runs with an earlier launch config than the one on disk, and as planned otherwise, is
        restarted (V(auto)) or left alone as restart pending (V(never)).
    type: str
    choices: [auto, never]
    default: never
  numa_mask:
    description: systemd's NUMAMask of the servers. Only the cores of these nodes are shared among them.
    type: str
    default: ""
  restart_triggers:
    description:
      - Further values used in the launch configs, such as user and limits.
      - A change restarts the servers.
    type: dict
    default: {}
  candidate:
    description:
      - Another llama-server on the host, as the path of the program or of a folder that has it, to compare with.
      - It is run for its version and flags only.
    type: path
    version_added: 0.2.0
  stray_variables:
    description: Names of variables set for every service of the host that llama-server would use; they cause a warning.
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
seealso:
  - module: magi.llama.server_state
  - module: magi.llama.wait_for_health
"""

EXAMPLES = r"""
- name: Plan the servers
  magi.llama.server_plan:
    registry_path: /var/lib/magi-llama/registry.json
    profile: "{{ ansible_facts.llama_profile }}"
    runtime: "{{ ansible_facts.llama_runtime }}"
    state_dir: /var/lib/magi-llama
    service_manager: systemd
"""

RETURN = r"""
changed:
  description: Whether any server has to be started, restarted or stopped.
  returned: always
  type: bool
drift:
  description: What the plan would do to each server that is not left as it is, with the reason, by name.
  returned: success
  type: dict
  sample: {"qwen3-8b-q4_k_m": "to start, not running"}
deployed:
  description: >-
    The state files and launch configs on the host, each path with a digest of the file's content.
    M(magi.llama.launch_configs) uses it to detect whether there is anything to write.
  returned: success
  type: dict
  sample: {"/var/lib/magi-llama/deployment.json": "9f86d081884c7d65…"}
rehearsal:
  description: >-
    What the candidate changes (C(lines)), and why it cannot run the profile (C(problems)), such as flags that it lacks.
  returned: with O(candidate)
  type: dict
  sample: {"lines": ["closes CVE-2026-21869"], "problems": []}
ansible_facts:
  description: The fact C(llama_plan).
  returned: success
  type: dict
  contains:
    llama_plan:
      description: The plan.
      type: dict
      contains:
        schema_version:
          description: Version of this layout, for which docs/schemas has the JSON Schema.
          type: int
          sample: 1
        collection_version:
          description: Version of the collection that wrote it.
          type: str
          sample: 0.1.0
        profile:
          description: Name of the profile.
          type: str
          sample: production
        servers:
          description: >-
            Every server with C(name), C(model_id), C(display_name), C(tier), C(kind), C(instance), C(generation),
            C(host), C(port), C(argv), C(env), C(revision), C(memory) (bytes), C(memory_max_bytes), C(action) (one of
            keep, start, restart, stop) and C(reason); under systemd also C(sandbox), what the unit must show
            of homes and temporary folders. C(argv_diff) is what changes on its command line, a flag a line, and
            C(downtime_seconds) for how long its requests find no server. With O(without_downtime) also C(change) (one
            of surge, swap, away) of one that is restarted, and C(stands_in_for) of a stand-in.
          type: list
          elements: dict
        memory:
          description: >-
            Bytes needed by all servers (C(needed_bytes), C(ram_bytes), C(vram_bytes)) and the limits
            (C(budget_bytes), C(host_ram_bytes), C(host_available_bytes), C(host_vram_bytes)). C(now), C(peak) and
            C(after) the change with C(ram_bytes), C(vram_bytes) and C(gpu_bytes) of each of the C(gpus).
          type: dict
        downtime_seconds:
          description: C(downtime_seconds) of all servers together.
          type: float
        waves:
          description: >-
            The steps of the change, with O(without_downtime): what is drained (C(drain)), what is done (C(actions), by
            server), what has to be ready at the end (C(ready)), models that other hosts have to serve meanwhile
            (C(needs)), and servers that are missed for so many seconds (C(away)).
          type: list
          elements: dict
        peak:
          description: >-
            The memory that servers need at most on the way (C(ram_bytes), C(vram_bytes)), with O(without_downtime).
          type: dict
        away:
          description: >-
            The seconds for which models are not served during the change, by id, with O(without_downtime).
          type: dict
        lost:
          description: >-
            Why servers that the profile wants are not on the host, by server or model id. Missing if there are none.
          type: dict
        ports:
          description: >-
            Ports that are remembered for servers that left the host, or that a conflict has moved, by name. Missing if
            there are none.
          type: dict
        warnings:
          description: Deviations from the profile that are not errors.
          type: list
          elements: str
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ansible_collections.magi.llama.plugins.module_utils._arguments.server_plan import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.commands import User, ids_of, output_of, run_command
from ansible_collections.magi.llama.plugins.module_utils._core.cores import usable_cores
from ansible_collections.magi.llama.plugins.module_utils._core.device_groups import device_groups
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.gpu_processes import TOOL_FOLDERS
from ansible_collections.magi.llama.plugins.module_utils._core.processes import (
    command_of,
    foreign_marks,
    listeners,
    memory,
    processes,
)
from ansible_collections.magi.llama.plugins.module_utils._core.readable import unreadable
from ansible_collections.magi.llama.plugins.module_utils._core.text import bounded
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import (
    DamagedRecordError,
    empty_record,
    read_record,
)
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import deployed
from ansible_collections.magi.llama.plugins.module_utils._health.observations import ready_seconds, started_configs
from ansible_collections.magi.llama.plugins.module_utils._health.pending import PENDING, config_digests, restart_pending
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import key_file
from ansible_collections.magi.llama.plugins.module_utils._launch.hidden import sandbox_warnings, shown_files
from ansible_collections.magi.llama.plugins.module_utils._launch.mounts import mounted_files
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import require
from ansible_collections.magi.llama.plugins.module_utils._plan.devices import find_gpus
from ansible_collections.magi.llama.plugins.module_utils._plan.differences import (
    drift,
    extra_warnings,
    has_changes,
    pending_warnings,
    plan_diff,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, Settings, settings_of
from ansible_collections.magi.llama.plugins.module_utils._plan.model_files import require_readable
from ansible_collections.magi.llama.plugins.module_utils._plan.on_demand import inner_port
from ansible_collections.magi.llama.plugins.module_utils._plan.plan import make_plan, plan_lines
from ansible_collections.magi.llama.plugins.module_utils._runtime.libraries import loaded_files
from ansible_collections.magi.llama.plugins.module_utils._runtime.probe import PROBE_ENVIRONMENT, PROBE_SECONDS
from ansible_collections.magi.llama.plugins.module_utils._services.manager import OnDemandError, ServiceManager
from ansible_collections.magi.llama.plugins.module_utils._services.table import (
    check_image,
    disabled,
    find_manager,
    foreign_units,
    open_sockets,
    unsupervised,
)

MAX_FOREIGN = 10
MAX_USERS = 4


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict:
    given = module.params
    given["state_dir"] = plain_path(given["state_dir"])
    given["api_key_file"] = key_file(given["api_key_file"], given["state_dir"])
    registry = given["registry"] or require(given["registry_path"])
    record, damaged = _record(given["state_dir"])
    manager = find_manager(given["service_manager"])
    check_image(manager, given["runtime"])
    settings = settings_of(given, manager.restart_triggers(given["stop_timeout"]), manager.key_path)
    settings = replace(settings, **_on_demand(given, manager))
    running = processes(given["state_dir"])
    gpus, warnings = _gpus(module, running, record)
    host = _host(given, settings, record, running, gpus)
    plan_with = partial(_make_plan, given, registry, settings, host)
    plan = plan_with(given["runtime"])
    user = given["restart_triggers"].get("user")
    ids = ids_of(user, given["restart_triggers"].get("user_groups") or [])
    if user:
        require_readable(plan, registry, user, lambda paths: unreadable(paths, ids))
    if manager.hides_folders:
        _find_hidden(plan, given["runtime"], ids)
    if manager.runs_images:
        for server in staying_servers(plan):
            server["sandbox"] = mounted_files(server["argv"])
    off = disabled(record, manager.name)
    plan["warnings"] += extra_warnings(plan, given["stray_variables"], off, foreign_units())
    plan["warnings"] += bounded(foreign_marks(given["state_dir"]), MAX_FOREIGN)
    # Servers of the user before still have to be recognised, to be stopped.
    if user:
        plan["users"] = list(dict.fromkeys([user, *record.get("users", [])]))[:MAX_USERS]
    if not manager.starts_at_boot and record["service_manager"] != manager.name:
        plan["warnings"].append(
            f"{manager.name} does not start the servers after a reboot of the host: run start.yml -e servers=all then. "
            "Until then status.yml shows them as stopped, and fails with -e fail_on=degraded."
        )
    plan["warnings"] = [*damaged, *warnings, *plan["warnings"], *pending_warnings(plan)]
    for warning in plan["warnings"]:
        module.warn(warning)
    return {
        **(_rehearse(given, plan, plan_with) if given["candidate"] else {}),
        "changed": has_changes(plan, off),
        "msg": "\n".join(plan_lines(plan)),
        "drift": drift(plan, off),
        "deployed": deployed(given["state_dir"], manager.name),
        "ansible_facts": {"llama_plan": plan},
        "diff": plan_diff(running, plan),
    }


def _make_plan(given: dict, registry: dict, settings: Settings, host: Host, runtime: dict) -> dict:
    known = given["known_elsewhere"], given["known_from_manifest"]
    return make_plan(registry, given["profile"], runtime, settings, host, *known)


def _rehearse(given: dict, plan: dict, plan_with: Callable) -> dict:
    """Compare the llama-server that is planned with another on the host."""
    # A module compiles at every call what it imports.
    from ansible_collections.magi.llama.plugins.module_utils._plan.rehearsal import find_candidate, rehearse
    from ansible_collections.magi.llama.plugins.module_utils._runtime.probe import probe

    try:
        path = find_candidate(given["candidate"])
        user = given["restart_triggers"].get("user")
        candidate = probe(path, partial(run_command, user=ids_of(user)), write_cache=False)
    except MagiError as error:
        return {"rehearsal": {"lines": [], "problems": [str(error)]}}
    return {"rehearsal": rehearse(given["profile"], given["runtime"], candidate, plan, plan_with)}


def _on_demand(given: dict, manager: ServiceManager) -> dict:
    """The settings with which servers are started on demand, if the profile has any."""
    if not any(entry.get("on_demand") for entry in given["profile"]["enabled_models"]):
        return {}
    try:
        return {"on_demand_programs": manager.on_demand_programs(given["state_dir"])}
    except OnDemandError as error:
        return {"on_demand_refusal": str(error)}


def _find_hidden(plan: dict, runtime: dict, ids: User | None) -> None:
    """Add to each server what its launch config must show of homes and temporary folders, and warnings."""
    loaded = loaded_files(runtime["path"], lambda *command: run_command(*command, user=ids))
    staying = staying_servers(plan)
    for server in staying:
        server["sandbox"] = shown_files(server["argv"], loaded)
    plan["warnings"] += sandbox_warnings(staying)


def staying_servers(plan: dict) -> list:
    """The servers of a plan that are launched."""
    return [server for server in plan["servers"] if server["action"] != "stop"]


def _record(state_dir: str) -> tuple:
    """What is deployed, and warnings."""
    try:
        return read_record(state_dir), []
    except DamagedRecordError as error:
        return empty_record(), [str(error)]


def _gpus(module: Module, running: dict, record: dict) -> tuple:
    """The host's GPUs as llama-server sees them with the rights of the servers' user, and warnings."""
    triggers = module.params["restart_triggers"]
    user = ids_of(triggers.get("user"), [*triggers.get("user_groups", []), *device_groups()])
    if module.params["runtime"].get("image"):
        # Only root has the image, whose llama-server runs without rights.
        user = None
    return find_gpus(
        module.params["runtime"],
        lambda argv: run_command(argv, PROBE_ENVIRONMENT, PROBE_SECONDS, user=user),
        lambda command: _output(module, command),
        {pid: name for name, process in running.items() for pid in (process.pid, *process.children)},
        {str(server["name"]): server["memory"].get("gpu_bytes") or [] for server in record["servers"]},
        command_of,
    )


def _host(given: dict, settings: Settings, record: dict, running: dict, gpus: list) -> Host:
    """Read what the plan needs of the host."""
    ports = range(settings.port_first, settings.port_last + 1)
    behind = [inner_port(port) for port in ports] if settings.on_demand_programs else []
    held = listeners([*ports, *behind])
    digests = config_digests(given["state_dir"], record["service_manager"], running)
    pids = {name: process.pid for name, process in running.items()}
    return Host(
        memory=memory(),
        gpus=gpus,
        record=record["servers"],
        running=running,
        listeners=held,
        unsupervised=unsupervised(running, record, given["state_dir"], given["service_manager"]),
        pending=dict.fromkeys(restart_pending(started_configs(given["state_dir"]), pids, digests), PENDING),
        restarts_pending=given["restart"] == "auto",
        cores=usable_cores(given["numa_mask"]),
        gpu_groups=device_groups() if gpus else [],
        remembered=record.get("ports", {}),
        sockets=open_sockets(record["service_manager"] or given["service_manager"], given["state_dir"], held),
        ready_seconds=ready_seconds(given["state_dir"]),
    )


def _output(module: Module, command: list) -> str | None:
    """Return a program's output; None if it is missing (as on a host without GPUs) or fails.

    A GPU that does not answer is an error: without it, the plan would move its servers to the CPU.
    """
    path = module.get_bin_path(command[0], opt_dirs=list(TOOL_FOLDERS))
    if path is None:
        return None
    return output_of(path, *command[1:], seconds=PROBE_SECONDS)


if __name__ == "__main__":
    main()
