# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The plan: every server that a host should run, and the action that gets it there.

Used by the module server_plan. Pure functions: the host's state is passed in as data; nothing here reads the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.argv import flag_value
from .._core.digests import digest_of
from .._core.errors import EstimateError
from .._core.text import format_bytes
from .._models.names import other_quantization, slug
from .._runtime.flags import FlagError
from .._runtime.render_flags import canonical_parameters, render_flags
from .differences import stopped_server, with_action
from .document import PLAN
from .exposure import exposure_defaults, refuse_powerful, refuse_sleep
from .gpu import vram_per_gpu
from .inputs import Host, PlanError, Server, Settings
from .memory import estimate, slot_context
from .memory_limits import check_memory, growth_warnings
from .ports import assign_ports
from .profile import Model, matches, misspelled, nearest, select

# Headroom for page tables, threads, allocator slack and long prompts, so that these do not get a server killed.
MEMORY_MAX_MARGIN = 1.25
MEMORY_MAX_FLOOR = 512 * 1024**2


def make_plan(
    registry: Mapping[str, Any],
    profile: Mapping[str, Any],
    runtime: Mapping[str, Any],
    settings: Settings,
    host: Host,
    known_elsewhere: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the plan document: the desired servers compared with the running ones; sizes in bytes.

    Each server is a record for deployment.json plus "action" (keep, start, restart, stop) and its "reason".
    known_elsewhere lists ids of models on other hosts of the run. Raises PlanError.
    """
    models: Sequence[Model] = registry["models"]
    _check_instances(profile, settings)
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
    ports = assign_ports([name for name, *_rest in wanted], orphans, settings, host, profile)

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
    planned = [with_action(server, before.get(server["name"]), host) for server in servers]
    planned += orphans
    kept = {server["name"] for server in planned}
    planned += [
        stopped_server(name, before.get(name), host.running.get(name), lost.get(name), profile)
        for name in sorted({*before, *host.running} - kept)
    ]
    memory = check_memory(planned, profile, settings, host)
    warnings += [f"{server['name']}: {text}" for server in servers for text in _context_warnings(server)]
    warnings += growth_warnings(planned, memory)
    _assert_unique(planned)
    return PLAN.stamp(
        {
            "profile": profile["name"],
            "start": profile["start"],
            "servers": planned,
            "memory": memory,
            "warnings": warnings,
        }
    )


def _check_instances(profile: Mapping[str, Any], settings: Settings) -> None:
    """Refuse more instances of a model than there are ports, before any of them is built."""
    ports = settings.port_last - settings.port_first + 1
    for entry in profile["enabled_models"]:
        if entry["instances"] > ports:
            raise PlanError(
                f'profile "{profile["name"]}" ({profile["source"]}): {entry["key"]}.instances is {entry["instances"]}, '
                f"the port range {settings.port_first} to {settings.port_last} has {ports} ports: lower it, or widen "
                "servers_port_range_start and servers_port_range_end."
            )


def _assert_unique(planned: Sequence[Server]) -> None:
    """Fail where two servers would have one name or one port: a mistake of the plan itself."""
    staying = [server for server in planned if server["action"] != "stop"]
    for key, values in (
        ("name", [str(server["name"]) for server in planned]),
        ("port", [str(server["port"]) for server in staying]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise PlanError(f"Two servers of the plan have one {key}: {', '.join(twice)}. Please report this.")


def _lost(
    missing: Mapping[str, str], registry: Mapping[str, Any], profile: Mapping[str, Any], host: Host
) -> dict[str, str]:
    """Return {server: reason} for deployed servers that the profile enables but whose model file is gone or broken.

    A missing or broken file does not mean that the server is unwanted: a download or mount may be in progress.
    """
    known = {str(model["id"]) for model in registry["models"]}
    selectors = [entry["selector"] for entry in profile["enabled_models"] if entry["model"] is None]
    lost = {}
    for server in host.record:
        as_model = {**server, "id": server["model_id"]}
        is_wanted = server["model_id"] in missing or any(matches(selector, as_model) for selector in selectors)
        if server["model_id"] not in known and is_wanted:
            path = flag_value(server["argv"], "--model") or "?"
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
    """Return warnings for named models that this host lacks and that have no running server.

    A name that differs in a letter or two from that of a model on this host is a typing error, unless another host has
    such a model, a broken file has its name, it was deployed here before, or it is that model in another quantization.
    """
    warnings: list[str] = []
    where = f'profile "{profile["name"]}" ({profile["source"]})'
    for model_id, key in missing.items():
        deployed = [server for server in host.record if server["model_id"] == model_id]
        broken = [entry for entry in registry["rejected"] if slug(str(entry["path"])) == model_id]
        if broken:
            why = f"{broken[0]['path']} was rejected: {broken[0]['reason']}"
        elif deployed:
            why = "file was removed since the last deployment"
        elif model_id in known_elsewhere:
            why = "other hosts of this run have it, this one does not"
        else:
            ids = [str(model["id"]) for model in registry["models"]]
            others = [name for name in ids if other_quantization(model_id, name)]
            if others:
                why = f"it has another quantization ({nearest(model_id, others)})"
            elif misspelled(model_id, ids):
                raise PlanError(f'{where}: {key}: unknown model "{model_id}" on this host: {nearest(model_id, ids)}')
            else:
                why = f"no similar model id on this host ({nearest(model_id, ids)})"
        if not any(server["name"] in host.running for server in deployed):
            warnings.append(f'{where}: {key}: model "{model_id}" is missing on this host: {why}; skipped.')
    return warnings


def _nothing_left(profile: Mapping[str, Any], models: Sequence[Model], warnings: Sequence[str]) -> str:
    where = f'profile "{profile["name"]}" ({profile["source"]})'
    said = re.findall(r"[^\s\"(),?]+", " ".join(warnings))
    unsaid = [model for model in models if model["id"] not in said]
    if models and not unsaid:
        return " ".join([*warnings, f"{where}: enables no model of this host."])
    have = ", ".join(f"{model['id']} ({model.get('tier')})" for model in unsaid[:10]) or "none"
    more = f" and {len(unsaid) - 10} more" if len(unsaid) > 10 else ""
    also = "also " if len(unsaid) < len(models) else ""
    return " ".join([*warnings, f"{where}: enables no model of this host, which {also}has: {have}{more}."])


def _named(
    servers: Sequence[tuple[Model, int, dict[str, Any]]], models: Sequence[Model]
) -> list[tuple[str, Model, int, dict[str, Any]]]:
    """Return each server with its name: the model id, plus "-2", "-3" … for further instances.

    If such a name is the id of another model, or taken, the instance's number gets one or more x before it.
    """
    taken = {str(model["id"]) for model in models}
    named = []
    for model, instance, parameters in servers:
        name = str(model["id"])
        mark = "-"
        while instance > 1:
            name, mark = f"{model['id']}{mark}{instance}", f"{mark}x"
            if name not in taken:
                break
        taken.add(name)
        named.append((name, model, instance, parameters))
    return named


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
    """Return the complete desired server: argv, environment, memory, and the revision (digest of its launch)."""
    kind = str(model["kind"])
    flags = runtime.get("flags") or {}
    try:
        effective = effective_parameters(model, parameters)
        effective.update(exposure_defaults(canonical_parameters(effective, flags), flags, bool(settings.api_key_file)))
        canonical = canonical_parameters(effective, flags)
        refuse_powerful({**parameters, **canonical}, settings)
        refuse_sleep(canonical, runtime)
        batch = _whole_inputs(model, canonical, runtime)
        effective, canonical = {**effective, **batch}, {**canonical, **batch}
        rendered = render_flags(effective, flags)
        # A build without the flag has no prompt cache.
        has_cache = not flags or "cache_ram" in flags
        memory = estimate(
            model["memory"],
            canonical if has_cache else {**canonical, "cache_ram": 0},
            kind=kind,
            gpus=len(host.gpus),
            build=runtime.get("build"),
            companion_bytes=companions.get(str(canonical.get("mmproj")), 0),
        )
        memory["gpu_bytes"] = vram_per_gpu(memory["vram_bytes"], memory["gpu_fixed_bytes"], canonical, host.gpus)
    except (FlagError, EstimateError, PlanError) as error:
        raise PlanError(f'profile "{profile["name"]}" ({profile["source"]}), server {name}: {error}') from error
    argv = [str(runtime["path"]), "--model", str(model["path"]), "--alias", str(model["id"])]
    argv += ["--host", settings.host, "--port", str(port), *rendered]
    if settings.api_key_file:
        argv += ["--api-key-file", settings.key_path(name, settings.api_key_file)]

    memory_max = int(memory["ram_bytes"] * MEMORY_MAX_MARGIN) + memory["growth_bytes"] + MEMORY_MAX_FLOOR
    memory["gpu_bytes"] = vram_per_gpu(memory["vram_bytes"], memory["gpu_fixed_bytes"], canonical, host.gpus)
    # A limit above the host's RAM would have no effect.
    memory_max = min(memory_max, host.memory.total_bytes)
    env = {
        "MAGI_LLAMA_STATE": settings.state_dir,
        "MAGI_LLAMA_SERVER": name,
        "MAGI_LLAMA_RUNTIME": str(runtime.get("identity") or ""),
        "MAGI_LLAMA_MODEL": _fingerprint(model),
        # Keeps the user's llama.cpp/config.ini from changing the server.
        "XDG_CONFIG_HOME": "/nonexistent",
    }
    launch = [argv, env, settings.restart_triggers, settings.service_manager, *settings.manager_triggers]
    revision = digest_of(launch)[:12]
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
    """Return the flags implied by the model's kind and projector, overridden by the profile's parameters."""
    by_kind = {"embedding": {"embedding": True}, "reranker": {"reranking": True}}
    projector = {"mmproj": model["mmproj"]} if model.get("mmproj") else {}
    return {**by_kind.get(str(model["kind"]), {}), **projector, **parameters}


def _whole_inputs(model: Model, canonical: Mapping[str, Any], runtime: Mapping[str, Any]) -> dict[str, int]:
    """Batch sizes with which an embedding or reranker server takes inputs as long as a slot.

    llama-server refuses an input longer than one physical batch, by default 512 tokens. Sizes of the profile are kept.
    """
    flags = runtime.get("flags") or {}
    if model["kind"] not in ("embedding", "reranker") or not {"ubatch_size", "batch_size"} <= set(flags):
        return {}
    if canonical.get("ubatch_size") is not None:
        return {}
    tokens = slot_context(model["memory"], canonical, kind=str(model["kind"]), build=runtime.get("build"))
    given = canonical.get("batch_size")
    return {"ubatch_size": tokens, "batch_size": tokens} if given is None else {"ubatch_size": int(given)}


def companion_sizes(registry: Mapping[str, Any]) -> dict[str, int]:
    """Return the size in bytes of each companion file, by path."""
    return {companion["path"]: int(companion.get("size_bytes") or 0) for companion in registry["companions"]}


def _fingerprint(model: Model) -> str:
    """Return a short digest of the model's files; it changes when a file is replaced."""
    fingerprint = model["fingerprint"]
    return digest_of([model["files"], fingerprint["size"], fingerprint["mtime_ns"], fingerprint["inode"]])[:12]


def _context_warnings(server: Server) -> list[str]:
    slot = server["memory"].get("slot_context")
    if slot is not None and 0 < slot < 512 and server["kind"] == "model":
        return [f"a slot gets a context of {slot} tokens only: raise ctx_size or lower parallel."]
    return []


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """Return the human-readable plan, one line per server; also used for the diff."""
    width = max((len(str(server["name"])) for server in plan["servers"]), default=0)
    return [
        f"{server['action']:<8}{server['name']:<{width}}  port {server['port']}  {server.get('tier') or '-':<4}"
        f"{format_bytes(server.get('memory', {}).get('total_bytes', 0)):>10}  {server['reason']}"
        for server in plan["servers"]
    ]
