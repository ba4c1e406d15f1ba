# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The plan: every server that a host should run, and the action that gets it there.

Used by the module server_plan. Pure functions: the host's state is passed in as data; nothing here reads the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.argv import flag_value
from .._core.text import sentences
from .._runtime.render_flags import render_flags
from .cpu import SPIN_COUNT, Demand, busy_threads, oversubscription, share_cores
from .differences import DEVICES, GROUPS, stopped_server, with_action
from .document import PLAN
from .drafts import Draft, make_draft, with_layers
from .inputs import Host, PlanError, Server, Settings
from .memory_flags import uncounted_warnings
from .memory_limits import check_memory, growth_warnings, memory_text
from .missing import lost_part, lost_servers, missing_models, nothing_left, refuse_lost
from .on_demand import (
    check_on_demand,
    limits_part,
    listens_at,
    on_demand_part,
    socket_environment,
)
from .outlook import with_outlook
from .ports import Ports, assign_ports, back_home
from .problems import Problems, refuse_servers
from .profile import Model, Selected, select
from .renamed import content_stamp, model_fingerprint, model_stamp, renamed_servers, with_ports_of_renamed
from .stand_ins import launch_revision
from .waves import changed_in_waves

# Headroom for page tables, threads, allocator slack and long prompts, so that these do not get a server killed.
MEMORY_MAX_MARGIN = 1.25
MEMORY_MAX_FLOOR = 512 * 1024**2
NO_GPU = (
    "servers_require_gpu is true, and none of its layers is on a GPU: free the GPUs, set n_gpu_layers, or set "
    "servers_require_gpu to auto."
)


def make_plan(
    registry: Mapping[str, Any],
    profile: Mapping[str, Any],
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    known_elsewhere: Sequence[str] = (),
    known_from_manifest: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the plan document: the desired servers compared with the running ones; sizes in bytes.

    Each server is a record for deployment.json plus "action" (keep, start, restart, stop) and its "reason".
    Ids of models: known_elsewhere those of other hosts, known_from_manifest those of the manifest. Raises PlanError.
    """
    check_on_demand(profile, settings)
    _check_instances(profile, settings)
    problems = Problems()
    selection = select(profile, registry["models"])
    before = {server["name"]: server for server in host.record}
    lost = lost_servers(selection.missing, registry, profile, host)
    moved = renamed_servers(lost, selection.servers, host)
    lost.update({old: f"its model is called {new} now" for old, new in moved.items()})
    refuse_lost({name: why for name, why in lost.items() if name not in moved}, profile, settings)
    orphans = [] if settings.prune else _orphans({name: why for name, why in lost.items() if name not in moved}, host)
    warnings, misspelled = missing_models(
        selection.missing, registry, profile, host, known_elsewhere, known_from_manifest
    )
    problems.add(*misspelled)
    warnings += _orphan_warnings(orphans, lost)
    wanted = _named(selection.servers, registry["models"])
    if not wanted and not orphans:
        problems.add(*([] if problems.texts else [nothing_left(profile, registry["models"], warnings)]))
        raise problems.error()
    host = with_ports_of_renamed(moved, host)
    ports = problems.attempt(assign_ports, wanted, orphans, settings, host, profile)
    made = problems.attempt(_drafts, wanted, registry, profile, runtime, settings, host, orphans)
    if problems.texts or ports is None or made is None:
        raise problems.error()
    drafts, layer_warnings = made
    threads, thread_warnings = _share_cores(drafts, settings, host)
    planned, remembered = _with_actions(drafts, ports, before, profile, runtime, settings, host, threads)
    warnings += _context_warnings(planned)
    planned += [*orphans, *_stopped([*planned, *orphans], before, lost, profile, host)]
    memory = check_memory(planned, profile, settings, host)
    planned, waves = changed_in_waves(_unique(planned), profile, settings, host)
    planned, change = with_outlook(planned, memory, waves, host)
    warnings += [*growth_warnings(planned, memory), *layer_warnings, *thread_warnings]
    return PLAN.stamp(
        {
            "profile": profile["name"],
            "start": profile["start"],
            "servers": planned,
            "warnings": warnings,
            **({"ports": remembered} if remembered else {}),
            **limits_part(planned, profile, settings, host),
            **lost_part(lost, moved, selection.missing, known_elsewhere),
            **change,
        }
    )


def _with_actions(
    drafts: Sequence[Draft],
    ports: Ports,
    before: Mapping[str, Server],
    profile: Mapping[str, Any],
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    threads: _Threads,
) -> tuple[list[Server], dict[str, int]]:
    """Return the desired servers with their actions, and the ports to remember for others, by name."""
    planned = []
    remembered = dict(ports.remembered)
    for draft in drafts:
        name, previous = draft.name, before.get(draft.name)
        server = _server(draft, ports.assigned[name], profile, runtime, settings, previous, host, threads)
        server = with_action(server, previous, host, ports.moves.get(name))
        if server["action"] != "keep" and name in ports.homes:
            # It gets a new process anyway.
            server = _server(draft, ports.homes[name], profile, runtime, settings, previous, host, threads)
            server = with_action(server, previous, host, back_home(ports, name))
            del remembered[name]
        planned.append(server)
    return planned, remembered


def _drafts(
    wanted: Sequence[tuple[str, Selected]],
    registry: Mapping[str, Any],
    profile: Mapping[str, Any],
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    orphans: Sequence[Server],
) -> tuple[list[Draft], list[str]]:
    """Return the servers with the layers that fit on the GPUs, and warnings. Raises PlanError."""
    sizes = companion_sizes(registry)
    made = {name: make_draft(name, selected, runtime, settings, host, sizes) for name, selected in wanted}
    refuse_servers(profile, {name: wrong for name, (_draft, wrong) in made.items()})
    drafts, warnings = with_layers(
        [draft for draft, _wrong in made.values() if draft], runtime, settings, host, sizes, orphans
    )
    warnings += [f"{draft.name}: {text}" for draft in drafts for text in uncounted_warnings(draft.canonical)]
    if settings.require_gpu == "true":
        refuse_servers(profile, {draft.name: [NO_GPU] for draft in drafts if not draft.memory["vram_bytes"]})
    return drafts, warnings


def _stopped(
    planned: Sequence[Server],
    before: Mapping[str, Server],
    lost: Mapping[str, str],
    profile: Mapping[str, Any],
    host: Host,
) -> list[Server]:
    """Return the servers that are deployed or running and not planned."""
    return [
        stopped_server(name, before.get(name), host.running.get(name), lost.get(name), profile)
        for name in sorted({*before, *host.running} - {server["name"] for server in planned})
    ]


def _orphans(lost: Mapping[str, str], host: Host) -> list[Server]:
    """Return the running servers whose model went missing; lost maps their names to the reasons."""
    return [
        {**server, "action": "keep", "reason": f"{lost[server['name']]}: the running server is left alone"}
        for server in host.record
        if server["name"] in lost and server["name"] in host.running
    ]


def _orphan_warnings(orphans: Sequence[Server], lost: Mapping[str, str]) -> list[str]:
    return [
        f"{server['name']}: {lost[server['name']]}. The running server is left alone; bring the file back, or "
        "remove the server with -e servers_prune=true."
        for server in orphans
    ]


def _check_instances(profile: Mapping[str, Any], settings: Settings) -> None:
    """Refuse more instances of a model than there are ports, before any of them is built."""
    ports = settings.port_last - settings.port_first + 1
    wrong = [
        f"{entry['key']}.instances is {entry['instances']}, the port range {settings.port_first} to "
        f"{settings.port_last} has {ports} ports: lower it, or widen servers_port_range_start and "
        "servers_port_range_end."
        for entry in profile["enabled_models"]
        if entry["instances"] > ports
    ]
    if wrong:
        raise PlanError(f'profile "{profile["name"]}" ({profile["source"]}): {sentences(wrong)}')


def _unique(planned: Sequence[Server]) -> Sequence[Server]:
    """Return the servers; fail where two would have one name or one port: a mistake of the plan itself."""
    staying = [server for server in planned if server["action"] != "stop"]
    for key, values in (
        ("name", [str(server["name"]) for server in planned]),
        ("port", [str(server["port"]) for server in staying]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise PlanError(f"Two servers of the plan have one {key}: {', '.join(twice)}. Please report this.")
    return planned


def _named(servers: Sequence[Selected], models: Sequence[Model]) -> list[tuple[str, Selected]]:
    """Return each server with its name: the model id, plus "-2", "-3" … for further instances.

    If such a name is the id of another model, or taken, the instance's number gets one or more x before it.
    """
    taken = {str(model["id"]) for model in models}
    named = []
    for selected in servers:
        model_id, instance = str(selected.model["id"]), selected.instance
        name, mark = model_id, "-"
        while instance > 1:
            name, mark = f"{model_id}{mark}{instance}", f"{mark}x"
            if name not in taken:
                break
        taken.add(name)
        named.append((name, selected))
    return named


@dataclass(frozen=True)
class _Threads:
    """The threads of each server that shares the cores, and the servers whose threads have to spin less."""

    shared: Mapping[str, int] = field(default_factory=dict)
    spinning: frozenset[str] = frozenset()


def _share_cores(drafts: Sequence[Draft], settings: Settings, host: Host) -> tuple[_Threads, list[str]]:
    """Return the threads of the servers that compute on the CPU, and warnings; nothing if the cores are unknown."""
    on_cpu = [draft for draft in drafts if draft.on_cpu]
    cores = host.cores
    if cores is None:
        return _Threads(), []
    own = {draft.name: draft.own_threads or cores for draft in on_cpu if draft.own_threads is not None}
    demands = [Demand(draft.name, draft.selected.cpu_share, own.get(draft.name)) for draft in on_cpu]
    threads = share_cores(cores, demands, settings.cpu_expected_busy)
    total = busy_threads(threads, settings.cpu_expected_busy)
    shared = {name: count for name, count in threads.items() if name not in own}
    # More servers than expected may be busy, and then each waits for threads that others keep off the cores. A server
    # that does not share the cores is not restarted for what others do.
    is_crowded = sum(threads.values()) > cores
    spinning = frozenset(name for name, count in shared.items() if is_crowded and count > 1)
    return _Threads(shared, spinning), oversubscription(cores, own, total)


def _thread_flags(draft: Draft, threads: _Threads, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the planned threads in place of auto."""
    known = [key for key in ("threads", "threads_batch") if not flags or key in flags]
    given = {key: draft.canonical.get(key) for key in known}
    if "auto" not in given.values():
        return draft.parameters
    kept = {key: value for key, value in draft.parameters.items() if value != "auto" or key not in given}
    count = threads.shared.get(draft.name)
    if count is None:
        return kept
    return {**kept, **{key: count for key, value in given.items() if value in ("auto", None)}}


def _server(
    draft: Draft,
    port: int,
    profile: Mapping[str, Any],
    runtime: Mapping[str, Any],
    settings: Settings,
    previous: Server | None,
    host: Host,
    threads: _Threads,
) -> Server:
    """Return the complete desired server: argv, environment, memory, and the revision (digest of its launch)."""
    name, model, memory = draft.name, draft.selected.model, draft.memory
    flags = runtime.get("flags") or {}
    rendered = render_flags(_thread_flags(draft, threads, flags), flags)
    argv = [str(runtime["path"]), "--model", str(model["path"]), "--alias", str(model["id"])]
    address, own_port = listens_at(draft.selected, port, settings)
    argv += ["--host", address, "--port", str(own_port), *rendered]
    if settings.api_key_file:
        argv += ["--api-key-file", settings.key_path(name, settings.api_key_file)]

    memory_max = int(memory["ram_bytes"] * MEMORY_MAX_MARGIN) + memory["growth_bytes"] + MEMORY_MAX_FLOOR
    # A limit above the host's RAM would have no effect.
    memory_max = min(memory_max, host.memory.total_bytes)
    env = {**_environment(draft, runtime, settings, host, threads), **socket_environment(draft.selected, port)}
    env["MAGI_LLAMA_MODEL"] = model_fingerprint(model, previous)
    revision = launch_revision(argv, env, settings)
    same = previous is not None and previous.get("revision") == revision
    generation = 1 if previous is None else int(previous.get("generation", 1)) + (0 if same else 1)
    return {
        "name": name,
        "model_id": str(model["id"]),
        "display_name": str(model["display_name"]),
        "tier": model.get("tier"),
        "kind": str(model["kind"]),
        "architecture": model.get("architecture"),
        "instance": draft.selected.instance,
        "generation": generation,
        "host": settings.host,
        "port": port,
        "argv": argv,
        "env": {**env, "MAGI_LLAMA_REVISION": revision},
        "revision": revision,
        "memory": memory,
        "memory_max_bytes": memory_max,
        **({} if settings.require_gpu == "auto" else {"require_gpu": settings.require_gpu}),
        "build": runtime.get("build"),
        "api_key_file": settings.api_key_file,
        "api_key_stamp": str(settings.restart_triggers.get("api_key_stamp") or ""),
        "model_stamp": model_stamp(model),
        "content_stamp": content_stamp(model),
        "stop_timeout": settings.stop_timeout,
        "max_startup_time": profile["start"]["max_startup_time"],
        **on_demand_part(draft, port, profile, settings, host),
    }


def _environment(
    draft: Draft, runtime: Mapping[str, Any], settings: Settings, host: Host, threads: _Threads
) -> dict[str, str]:
    """Return the variables that a server is started with, except for its revision."""
    env = {
        "MAGI_LLAMA_STATE": settings.state_dir,
        "MAGI_LLAMA_SERVER": draft.name,
        "MAGI_LLAMA_RUNTIME": str(runtime.get("identity") or ""),
        # Keeps the user's llama.cpp/config.ini from changing the server.
        "XDG_CONFIG_HOME": "/nonexistent",
    }
    if draft.memory["vram_bytes"]:
        used = [host.gpus[place] for place, size in enumerate(draft.memory["gpu_bytes"]) if size]
        env[DEVICES] = ", ".join(gpu.label for gpu in used)
        if host.gpu_groups:
            env[GROUPS] = ",".join(host.gpu_groups)
    # Of no effect without OpenMP, and a change of it would restart the server.
    if draft.name in threads.spinning and runtime.get("openmp") is not False:
        env["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    return env


def companion_sizes(registry: Mapping[str, Any]) -> dict[str, int]:
    """Return the size in bytes of each companion file, by path."""
    return {companion["path"]: int(companion.get("size_bytes") or 0) for companion in registry["companions"]}


def _context_warnings(planned: Sequence[Server]) -> list[str]:
    """A warning for each server whose slots hold little of a conversation."""
    slots = {
        str(server["name"]): server["memory"].get("slot_context") for server in planned if server["kind"] == "model"
    }
    return [
        f"{name}: a slot gets a context of {slot} tokens only: raise ctx_size or lower parallel."
        for name, slot in slots.items()
        if slot is not None and 0 < slot < 512
    ]


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return the human-readable plan, one line per server; also used for the diff."""
    width = max((len(str(server["name"])) for server in plan["servers"]), default=0)
    return [
        f"{_action_text(server):<8}{server['name']:<{width}}  port {server['port']}  {server.get('tier') or '-':<4}"
        f"{memory_text(server.get('memory', {})):>10}  {_threads_text(server)}{server['reason']}"
        for server in plan["servers"]
    ]


def _action_text(server: Mapping[str, Any]) -> str:
    return str(server.get("change") or server["action"])


def _threads_text(server: Mapping[str, Any]) -> str:
    count = flag_value(server.get("argv") or [], "--threads")
    return f"{count} thread{'' if count == '1' else 's'}  " if count else ""
