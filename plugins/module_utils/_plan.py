# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: every server that a host should run, and what must happen to get there.

Used by the module server_plan. Pure: what the host has and runs comes in as data, nothing here looks at the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._errors import EstimateError, MagiError
from ._gpu import Gpu, spread
from ._memory import estimate
from ._names import other_quantization, slug
from ._proc import Listener, Memory, Process
from ._profile import Model, matches, near, nearest, select
from ._runtime import FlagError, canonical_parameters, render_flags

# Page tables, threads, allocator slack and what a long prompt adds: a server must not be killed for these.
MEMORY_MAX_MARGIN = 1.25
MEMORY_MAX_FLOOR = 512 * 1024**2

Server = dict[str, Any]


class PlanError(MagiError):
    """A plan that cannot be made; nothing has been touched."""


@dataclass(frozen=True)
class Settings:
    """What the role was told: where servers listen, keep their state and what they are launched with."""

    state_dir: str
    service_manager: str
    port_first: int = 8080
    port_last: int = 8099
    host: str = "127.0.0.1"
    api_key_file: str | None = None
    stop_timeout: int = 30
    memory_overcommit: bool = False
    move_on_conflict: bool = False
    launch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """What the machine has and what runs on it: read once, before the plan.

    unwatched are running servers that their service manager does not know, with the reason.
    """

    memory: Memory
    gpus: Sequence[Gpu] = ()
    record: Sequence[Server] = ()
    running: Mapping[str, Process] = field(default_factory=dict)
    listeners: Mapping[int, Listener] = field(default_factory=dict)
    unwatched: Mapping[str, str] = field(default_factory=dict)


def make_plan(
    registry: Mapping[str, Any],
    profile: Mapping[str, Any],
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    known_elsewhere: Sequence[str] = (),
) -> dict[str, Any]:
    """Desired against actual, as {"profile", "start", "servers", "memory", "warnings"}; sizes in bytes.

    Each server is a record for servers.json plus "action" (keep, start, restart, stop) and its "reason".
    known_elsewhere are ids of models that other hosts of the run have. Raises PlanError.
    """
    models: Sequence[Model] = registry["models"]
    selection = select(profile, models)
    before = {server["name"]: server for server in host.record}
    lost = _lost(selection.missing, registry, profile, host)
    orphans = [
        {**server, "action": "keep", "reason": f"{lost[server['name']]}: the running server is left alone"}
        for server in host.record
        if server["name"] in lost and server["name"] in host.running
    ]
    warnings = _missing(selection.missing, registry, profile, host, known_elsewhere)
    warnings += [
        f"{server['name']}: {lost[server['name']]}. The running server is left alone; bring the file back, or end the "
        f"server with stop.yml -e servers={server['name']}."
        for server in orphans
    ]
    wanted = _named(selection.servers, models)
    if not wanted and not orphans:
        raise PlanError(_nothing_left(profile, models, warnings))
    ports = _ports([name for name, *_rest in wanted], orphans, settings, host, profile)

    sizes = companion_sizes(registry)
    servers = [
        _server(
            name,
            model,
            instance,
            parameters,
            ports[name],
            profile,
            runtime,
            settings,
            before.get(name),
            host,
            sizes,
        )
        for name, model, instance, parameters in wanted
    ]
    planned = [_with_action(server, before.get(server["name"]), host) for server in servers]
    planned += orphans
    kept = {server["name"] for server in planned}
    planned += [
        _stopped(name, before.get(name), host.running.get(name), lost.get(name), profile)
        for name in sorted({*before, *host.running} - kept)
    ]
    memory = _check_memory(planned, profile, settings, host)
    warnings += [f"{server['name']}: {text}" for server in servers for text in _context_warnings(server)]
    warnings += _growth_warnings(planned, memory)
    return {
        "profile": profile["name"],
        "start": profile["start"],
        "servers": planned,
        "memory": memory,
        "warnings": warnings,
    }


def _lost(
    missing: Mapping[str, str], registry: Mapping[str, Any], profile: Mapping[str, Any], host: Host
) -> dict[str, str]:
    """Deployed servers that the profile would enable if their model's file were not gone or broken, with what it is.

    A file that breaks says nothing about what its owner wants: it may be a download or a mount that is under way.
    """
    known = {str(model["id"]) for model in registry["models"]}
    selectors = [entry["selector"] for entry in profile["enabled_models"] if entry["model"] is None]
    lost = {}
    for server in host.record:
        as_model = {**server, "id": server["model_id"]}
        is_wanted = server["model_id"] in missing or any(matches(selector, as_model) for selector in selectors)
        if server["model_id"] not in known and is_wanted:
            path = next((value for flag, value in zip(server["argv"], server["argv"][1:]) if flag == "--model"), "?")
            broken = [entry["reason"] for entry in registry["rejected"] if entry["path"] == path]
            lost[str(server["name"])] = f"{path} was rejected ({broken[0]})" if broken else f"{path} is gone"
    return lost


def _missing(
    missing: Mapping[str, str],
    registry: Mapping[str, Any],
    profile: Mapping[str, Any],
    host: Host,
    known_elsewhere: Sequence[str],
) -> list[str]:
    """Warnings for named models that this host lacks and of which no server runs.

    A name that is nearly that of a model which is here is taken for a typing error, unless another host has such a
    model, a broken file bears its name, it was deployed here before, or it is that model in another quantization.
    """
    warnings: list[str] = []
    where = f'profile "{profile["name"]}" ({profile["source"]})'
    for model_id, key in missing.items():
        deployed = [server for server in host.record if server["model_id"] == model_id]
        broken = [entry for entry in registry["rejected"] if slug(str(entry["path"])) == model_id]
        if broken:
            why = f"{broken[0]['path']} was rejected: {broken[0]['reason']}"
        elif deployed:
            why = "it was here when it was deployed last and is gone"
        elif model_id in known_elsewhere:
            why = "other hosts of this run have it, this one does not"
        else:
            ids = [str(model["id"]) for model in registry["models"]]
            others = [name for name in ids if other_quantization(model_id, name)]
            if others:
                why = f"it has {', '.join(others)}"
            elif near(model_id, ids):
                raise PlanError(f'{where}: {key}: unknown model "{model_id}" on this host: {nearest(model_id, ids)}')
            else:
                why = f"nothing here is called so or nearly so ({nearest(model_id, ids)})"
        if not any(server["name"] in host.running for server in deployed):
            warnings.append(
                f'{where}: {key}: model "{model_id}" is missing on this host: {why}; the others go on without it.'
            )
    return warnings


def _nothing_left(profile: Mapping[str, Any], models: Sequence[Model], warnings: Sequence[str]) -> str:
    where = f'profile "{profile["name"]}" ({profile["source"]})'
    have = ", ".join(f"{model['id']} ({model.get('tier')})" for model in models[:10]) or "none"
    more = f" and {len(models) - 10} more" if len(models) > 10 else ""
    return " ".join([*warnings, f"{where}: enables no model of this host, which has: {have}{more}."])


def _named(
    servers: Sequence[tuple[Model, int, dict[str, Any]]], models: Sequence[Model]
) -> list[tuple[str, Model, int, dict[str, Any]]]:
    """Each server with its name: the model's id, and "-2", "-3" … for further instances.

    Where such a name is the id of another model, the instance's number is marked with an x.
    """
    ids = {str(model["id"]) for model in models}
    named = []
    for model, instance, parameters in servers:
        name = str(model["id"])
        if instance > 1:
            name = f"{model['id']}-{instance}"
            name = f"{model['id']}-x{instance}" if name in ids else name
        named.append((name, model, instance, parameters))
    return named


def _ports(
    names: Sequence[str], orphans: Sequence[Server], settings: Settings, host: Host, profile: Mapping[str, Any]
) -> dict[str, int]:
    """A port for every name: the one it has, else the first that is free; ports of stopping servers come last."""
    valid = range(settings.port_first, settings.port_last + 1)
    held = {int(server["port"]): str(server["name"]) for server in host.record}
    held.update(
        {port: name for name, process in host.running.items() if (port := _flag_port(process.argv)) is not None}
    )
    ours = {pid for process in host.running.values() for pid in (process.pid, *process.children)}
    current = {name: port for port, name in held.items()}

    for name in names:
        port = current.get(name)
        listener = host.listeners.get(port) if port is not None and port in valid else None
        if listener is not None and not _is_ours(listener, name, ours, host):
            if not settings.move_on_conflict:
                raise PlanError(
                    f"Port {port} of server {name} is held by {_holder(listener)}: stop that process, "
                    "or let the server move to a free port with -e servers_move_on_conflict=true."
                )
            del current[name]

    foreign = {
        port
        for port in valid
        if port in host.listeners and not _is_ours(host.listeners[port], held.get(port, ""), ours, host)
    }
    ports = {name: current[name] for name in names if current.get(name) in valid}
    taken = {*ports.values(), *foreign, *(int(server["port"]) for server in orphans)}
    fresh = [port for port in valid if port not in taken and port not in held]
    freed = [port for port in valid if port not in taken and port in held]
    queue = iter([*fresh, *freed])
    try:
        for name in names:
            if name not in ports:
                ports[name] = next(queue)
    except StopIteration:
        others = "".join(f"; {port} is held by {_holder(host.listeners[port])}" for port in sorted(foreign))
        raise PlanError(
            f'profile "{profile["name"]}" ({profile["source"]}) wants {len(names)} servers, the port range '
            f"{settings.port_first} to {settings.port_last} has room for {len(valid) - len(foreign)}{others}: "
            "widen servers_port_range_start and servers_port_range_end, or enable fewer models."
        ) from None
    return ports


def _flag_port(argv: Sequence[str]) -> int | None:
    """The value of --port in a command line."""
    for flag, value in zip(argv, argv[1:]):
        if flag == "--port" and value.isdigit():
            return int(value)
    return None


def _is_ours(listener: Listener, name: str, ours: set[int], host: Host) -> bool:
    if listener.pid is None:
        # Not permitted to see whose socket it is: it is ours if our server runs there.
        return name in host.running
    if listener.pid not in ours or name not in host.running:
        return listener.pid in ours
    return listener.pid in (host.running[name].pid, *host.running[name].children)


def _holder(listener: Listener) -> str:
    if listener.pid is None:
        return "a process that only root may see"
    return f"pid {listener.pid} ({listener.command})"


def _server(
    name: str,
    model: Model,
    instance: int,
    parameters: Mapping[str, Any],
    port: int,
    profile: Mapping[str, Any],
    runtime: Mapping[str, Any],
    settings: Settings,
    previous: Server | None,
    host: Host,
    companions: Mapping[str, int],
) -> Server:
    """The desired server in full: argv, environment, memory, and the revision that sums up its launch."""
    kind = str(model["kind"])
    flags = runtime.get("flags") or {}
    try:
        effective = effective_parameters(model, parameters)
        rendered = render_flags(effective, flags)
        canonical = canonical_parameters(effective, flags)
        # A build that does not know the flag has no such cache.
        has_cache = not flags or "cache_ram" in flags
        memory = estimate(
            model["memory"],
            canonical if has_cache else {**canonical, "cache_ram": 0},
            kind=kind,
            gpus=len(host.gpus),
            build=runtime.get("build"),
            companion_bytes=companions.get(str(canonical.get("mmproj")), 0),
        )
    except (FlagError, EstimateError) as error:
        raise PlanError(f'profile "{profile["name"]}" ({profile["source"]}), server {name}: {error}') from error
    argv = [str(runtime["path"]), "--model", str(model["path"]), "--alias", str(model["id"])]
    argv += ["--host", settings.host, "--port", str(port), *rendered]
    if settings.api_key_file:
        argv += ["--api-key-file", settings.api_key_file]

    memory_max = int(memory["ram_bytes"] * MEMORY_MAX_MARGIN) + memory["growth_bytes"] + MEMORY_MAX_FLOOR
    memory["gpu_bytes"] = spread(memory["vram_bytes"], memory["gpu_fixed_bytes"], canonical, host.gpus)
    # What a server may grow to can be more than there is; a limit above that limits nothing.
    memory_max = min(memory_max, host.memory.total_bytes)
    env = {
        "MAGI_LLAMA_STATE": settings.state_dir,
        "MAGI_LLAMA_SERVER": name,
        "MAGI_LLAMA_RUNTIME": str(runtime.get("identity") or ""),
        "MAGI_LLAMA_MODEL": _fingerprint(model),
        # A llama.cpp/config.ini of the user's would change the server.
        "XDG_CONFIG_HOME": "/nonexistent",
    }
    launch: list[Any] = [argv, env, settings.launch, settings.service_manager]
    if settings.service_manager == "supervisor":
        # systemd takes a new deadline over by itself, supervisor with a new process only.
        launch.append(settings.stop_timeout)
    revision = _digest(launch)
    same = previous is not None and previous.get("revision") == revision
    generation = 1 if previous is None else int(previous.get("generation", 1)) + (0 if same else 1)
    return {
        "name": name,
        "model_id": str(model["id"]),
        "display_name": str(model["display_name"]),
        "tier": model.get("tier"),
        "kind": kind,
        "architecture": model.get("architecture"),
        "instance": instance,
        "generation": generation,
        "host": settings.host,
        "port": port,
        "argv": argv,
        "env": {**env, "MAGI_LLAMA_REVISION": revision},
        "revision": revision,
        "memory": memory,
        "memory_max_bytes": memory_max,
        "api_key_file": settings.api_key_file,
        "stop_timeout": settings.stop_timeout,
        "max_startup_time": profile["start"]["max_startup_time"],
    }


def effective_parameters(model: Model, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a model's kind and companion ask for, and the profile's, which win."""
    by_kind = {"embedding": {"embedding": True}, "reranker": {"reranking": True}}
    projector = {"mmproj": model["mmproj"]} if model.get("mmproj") else {}
    return {**by_kind.get(str(model["kind"]), {}), **projector, **parameters}


def companion_sizes(registry: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of every file that belongs to a model, by path."""
    return {companion["path"]: int(companion.get("size_bytes") or 0) for companion in registry["companions"]}


def _fingerprint(model: Model) -> str:
    """The model's files as they are now, short: a replaced file gives another text."""
    fingerprint = model["fingerprint"]
    return _digest([model["files"], fingerprint["size"], fingerprint["mtime_ns"], fingerprint["inode"]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _with_action(server: Server, previous: Server | None, host: Host) -> Server:
    process = host.running.get(server["name"])
    if process is None:
        reason = "new" if previous is None else "not running"
        return {**server, "action": "start", "reason": reason}
    reasons = _differences(server, process)
    if server["name"] in host.unwatched:
        reasons.insert(0, host.unwatched[server["name"]])
    if reasons:
        return {**server, "action": "restart", "reason": "; ".join(reasons)}
    return {**server, "action": "keep", "reason": "runs as planned"}


def _differences(server: Server, process: Process) -> list[str]:
    """How the running process is not the planned one, by its own command line and environment."""
    env = process.env
    running = list(process.argv)
    if env.get("MAGI_LLAMA_REVISION") == server["revision"]:
        # A wrapper script shows the program that it calls, or its interpreter before itself, and may have flags of its
        # own; the revision tells which one was launched.
        arguments = server["argv"][1:]
        running = [*server["argv"][:1], *(arguments if _holds(running, arguments) else running[1:])]
    reasons = _argv_differences(running, server["argv"])
    if env.get("MAGI_LLAMA_RUNTIME") != server["env"]["MAGI_LLAMA_RUNTIME"]:
        reasons.append("llama-server itself changed")
    if env.get("MAGI_LLAMA_MODEL") != server["env"]["MAGI_LLAMA_MODEL"]:
        reasons.append("the model's file changed")
    if process.stray:
        reasons.append(f"its environment has {', '.join(process.stray)}")
    if not reasons and env.get("MAGI_LLAMA_REVISION") != server["revision"]:
        reasons.append("its launch config changed")
    return reasons


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether a command line has these words, one after another."""
    return any(words[place : place + len(part)] == part for place in range(len(words) - len(part) + 1))


def _argv_differences(old: Sequence[str], new: Sequence[str]) -> list[str]:
    if list(old) == list(new):
        return []
    before, after = _by_flag(old), _by_flag(new)
    changes = []
    for flag in sorted({*before, *after}):
        if before.get(flag) != after.get(flag):
            changes.append(f"{flag} {before.get(flag, 'unset')} → {after.get(flag, 'unset')}")
    return changes or ["the order of its flags changed"]


def _by_flag(argv: Sequence[str]) -> dict[str, str]:
    """A command line as flag → its values; the program itself under "program"."""
    flags: dict[str, list[str]] = {"program": list(argv[:1])}
    current = "program"
    for word in argv[1:]:
        if word.startswith("--"):
            current = word
            flags.setdefault(current, [])
        else:
            flags[current].append(word)
    return {flag: " ".join(values) or "on" for flag, values in flags.items()}


def _stopped(
    name: str, previous: Server | None, process: Process | None, lost: str | None, profile: Mapping[str, Any]
) -> Server:
    port = _flag_port(process.argv) if process else None
    server = previous or {"name": name, "model_id": name, "port": port, "argv": list(process.argv) if process else []}
    reason = f"{lost}, and it does not run" if lost else f'profile "{profile["name"]}" does not enable it'
    return {**server, "action": "stop", "reason": reason}


def _check_memory(
    planned: Sequence[Server], profile: Mapping[str, Any], settings: Settings, host: Host
) -> dict[str, Any]:
    """The need of all servers against the budget, the host's RAM and its GPUs. Raises PlanError."""
    staying = [server for server in planned if server["action"] != "stop"]
    ram = sum(int(server["memory"]["ram_bytes"]) for server in staying)
    vram = sum(int(server["memory"]["vram_bytes"]) for server in staying)
    # A server that is left running may have been planned when there were other GPUs.
    spreads = [list(server["memory"].get("gpu_bytes") or []) for server in staying]
    on_gpu = [sum(row[place] for row in spreads if len(row) == len(host.gpus)) for place in range(len(host.gpus))]
    budget = profile.get("memory_budget_bytes")
    limits = [("the profile's memory_budget", ram + vram, budget)] if budget is not None else []
    limits.append(("this host's RAM", ram, host.memory.total_bytes))
    for gpu, need in zip(host.gpus, on_gpu):
        limits.append((f"the memory of GPU {gpu.index} ({gpu.name})", need, gpu.total_bytes))
    for what, need, limit in limits:
        if limit is not None and need > limit and not settings.memory_overcommit:
            largest = sorted(staying, key=lambda server: -int(server["memory"]["total_bytes"]))
            listing = ", ".join(f"{s['name']} {format_bytes(s['memory']['total_bytes'])}" for s in largest[:8])
            more = f" and {len(largest) - 8} more" if len(largest) > 8 else ""
            raise PlanError(
                f'profile "{profile["name"]}" ({profile["source"]}): the servers need {format_bytes(need)}, {what} is '
                f"{format_bytes(limit)}: {listing}{more}. Lower ctx_size, parallel or instances, enable fewer models, "
                "quantise the KV cache (cache_type_k, cache_type_v), or set servers_memory_overcommit."
            )
    return {
        "needed_bytes": ram + vram,
        "ram_bytes": ram,
        "vram_bytes": vram,
        "budget_bytes": budget,
        "host_ram_bytes": host.memory.total_bytes,
        "host_available_bytes": host.memory.available_bytes,
        "gpu_bytes": on_gpu,
        "host_vram_bytes": sum(gpu.total_bytes for gpu in host.gpus),
    }


def _growth_warnings(planned: Sequence[Server], memory: Mapping[str, Any]) -> list[str]:
    """A warning where servers that have all they ask for now may later grow over the host's RAM."""
    growths = {
        str(server["name"]): int(server["memory"].get("expected_growth_bytes", 0))
        for server in planned
        if server["action"] != "stop"
    }
    growth, total = sum(growths.values()), memory["host_ram_bytes"]
    if not growth or memory["ram_bytes"] + growth <= total:
        return []
    largest = sorted(growths, key=lambda name: -growths[name])
    listing = ", ".join(f"{name} {format_bytes(growths[name])}" for name in largest[:8])
    more = f" and {len(largest) - 8} more" if len(largest) > 8 else ""
    need = format_bytes(memory["ram_bytes"])
    return [
        f"Once their prompt caches and checkpoints are full, the servers may take {format_bytes(growth)} more than the "
        f"{need} that they need, and this host's RAM is {format_bytes(total)}: {listing}{more}. "
        "Set cache_ram (in MiB, 8192 where it is not set) or ctx_checkpoints lower in the profile's parameters."
    ]


def format_bytes(size: float) -> str:
    """A size for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _context_warnings(server: Server) -> list[str]:
    slot = server["memory"].get("slot_context")
    if slot is not None and 0 < slot < 512 and server["kind"] == "model":
        return [f"a slot gets a context of {slot} tokens only: raise ctx_size or lower parallel."]
    return []


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan for people and for the diff: a line for each server."""
    width = max((len(str(server["name"])) for server in plan["servers"]), default=0)
    return [
        f"{server['action']:<8}{server['name']:<{width}}  port {server['port']}  {server.get('tier') or '-':<4}"
        f"{format_bytes(server.get('memory', {}).get('total_bytes', 0)):>10}  {server['reason']}"
        for server in plan["servers"]
    ]


def settings_of(servers: Sequence[Server]) -> dict[str, dict[str, Any]]:
    """What a diff compares: each server's port and command line by name."""
    return {str(server["name"]): {"port": server["port"], "argv": list(server["argv"])} for server in servers}
