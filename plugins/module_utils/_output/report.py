# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a run prints: facts in, lines of text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.errors import EstimateError
from .._core.stand_ins import without_stand_ins
from .._core.text import bounded, format_bytes
from .._health.breakdown import deviation, gpu_part, ram_part
from .._launch.hidden import shown_text
from .._plan.drafts import effective_parameters
from .._plan.memory import estimate
from .._plan.plan import companion_sizes, plan_lines
from .._plan.profile import select
from .._plan.waves import away_text

STEPS = ("discovery", "profile", "enabled models", "launch", "health")
# The registry lists all of them.
MAX_LISTED = 20
MAX_WARNINGS = 200


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Rows under a header, in columns as wide as their widest cell; numbers are right-aligned."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(str(row[column])) for row in [header, *cells]) for column in range(len(header))]
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width) for text, width, to_right in zip(row, widths, right)
        ).rstrip()
        for row in [list(header), *cells]
    ]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def format_seconds(seconds: float) -> str:
    """A human-readable duration: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def step_line(step: str, text: str) -> str:
    """[2/5] profile         text"""
    return f"[{STEPS.index(step) + 1}/{len(STEPS)}] {step:<15} {text}"


def runtime_lines(runtime: Mapping[str, Any], tried: Sequence[Mapping[str, str]]) -> list[str]:
    """Which llama-server is used, by which method, and why the methods before it were not used."""
    build = f" (build {runtime['build']})" if runtime["build"] else ""
    what = f"{runtime['version']}{build}" if runtime["installed"] else "not installed yet"
    lines = [f"llama-server {what}, {runtime['path']}, method {runtime['source']}"]
    # Only the reason: the advice after it is for hosts without any llama-server.
    return lines + [
        f"      method {entry['method']}: not used, {entry['result'].partition('. ')[0].rstrip('.')}"
        for entry in tried
        if entry["method"] != runtime["source"]
    ]


def discovery_lines(registry: Mapping[str, Any], changes: Mapping[str, Sequence[str]]) -> list[str]:
    """What a scan found, and what was added and removed since the last one."""
    rejected, companions = registry["rejected"], registry["companions"]
    extra = [f"{len(companions)} companion files"] if companions else []
    count = registry.get("rejected_total", len(rejected))
    extra += [f"{count} rejected"] if rejected else []
    text = f"{registry['total']} models in {', '.join(registry['scan_paths'])}"
    lines = [step_line("discovery", text + (f" ({', '.join(extra)})" if extra else ""))]
    lines += [f"      {what:<9}{_listed(ids)}" for what, ids in changes.items() if ids]
    return lines + bounded(
        [f"      rejected {entry['path']}: {entry['reason']}" for entry in rejected], MAX_LISTED, count
    )


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_LISTED} more" if len(ids) > MAX_LISTED else ""
    return ", ".join(ids[:MAX_LISTED]) + more


def profile_lines(profile: Mapping[str, Any]) -> list[str]:
    """Which profile is used, and where it was loaded from."""
    return [step_line("profile", f"{profile['name']}: {profile['description']} ({profile['source']})")]


def enabled_lines(plan: Mapping[str, Any]) -> list[str]:
    """How many servers of which tiers, and what they need."""
    servers = _enabled(plan)
    tiers = Counter(str(server.get("tier") or "-") for server in servers)
    listing = ", ".join(f"{tier} ×{count}" if count > 1 else tier for tier, count in sorted(tiers.items()))
    models = len({server["model_id"] for server in servers})
    memory = plan["memory"]
    budget = memory["budget_bytes"]
    # RAM and GPU memory are never added up.
    need = f"{format_bytes(memory['ram_bytes'])} of {format_bytes(memory['host_ram_bytes'])} RAM"
    if memory["host_vram_bytes"]:
        usable = memory.get("usable_vram_bytes", memory["host_vram_bytes"])
        need += f", {format_bytes(memory['vram_bytes'])} of {format_bytes(usable)} GPU memory"
    need += f", a budget of {format_bytes(budget)}" if budget else ""
    return [step_line("enabled models", f"{len(servers)} servers of {models} models ({listing}), {need}")]


def _enabled(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The servers that are there to stay."""
    return [server for server in without_stand_ins(plan["servers"]) if server["action"] != "stop"]


def launch_lines(plan: Mapping[str, Any]) -> list[str]:
    """What is started, restarted and stopped, each with its reason."""
    counts = Counter(str(server["action"]) for server in without_stand_ins(plan["servers"]))
    order = ("start", "restart", "stop", "keep")
    text = ", ".join(f"{counts[action]} to {action}" for action in order if counts[action]) or "nothing to do"
    changing = {**plan, "servers": [server for server in plan["servers"] if server["action"] != "keep"]}
    launched = [server for server in changing["servers"] if server["action"] != "stop"]
    shown = [f"      {server['name']}: {text}" for server in launched for text in [shown_text(server)] if text]
    return [
        step_line("launch", text),
        *(f"      {line}" for line in [*plan_lines(changing), *_change_lines(plan)]),
        *bounded(shown, MAX_LISTED),
    ]


def _change_lines(plan: Mapping[str, Any]) -> list[str]:
    """What a change in waves needs on the way, and what is away meanwhile."""
    if not plan.get("waves"):
        return []
    peak, away = plan["peak"], plan["away"]
    need = f"{format_bytes(peak['ram_bytes'])} RAM"
    need += f" and {format_bytes(peak['vram_bytes'])} GPU memory" if peak["vram_bytes"] else ""
    count = len(plan["waves"])
    lines = [f"in {count} step{'s' * (count != 1)}, with at most {need} on the way"]
    return [*lines, f"warning  {away_text(away)} (-e allow_downtime=true accepts it)"] if away else lines


def health_lines(health: Mapping[str, Any]) -> list[str]:
    """How many servers are ready."""
    return [step_line("health", f"{health['ready']} of {len(health['servers'])} ready")]


def summary_lines(
    registry: Mapping[str, Any] | None, plan: Mapping[str, Any], health: Mapping[str, Any], seconds: float | None
) -> list[str]:
    """The end of a run: the counts, and a line for each server."""
    discovered = f"{registry['total']} discovered, " if registry is not None else ""
    enabled = _enabled(plan)
    launched = sum(server["action"] in ("start", "restart") for server in enabled)
    tiers = {server["name"]: server.get("tier") for server in enabled}
    # A server that crashes and comes back is ready whenever someone looks.
    has_restarts = any(server.get("restarts") for server in health["servers"])
    rows = [
        [
            server["name"],
            server["port"],
            server["pid"],
            tiers.get(server["name"]),
            server["state"],
            server.get("seconds_to_ready"),
            *([server["restarts"]] if has_restarts else []),
        ]
        for server in sorted(health["servers"], key=lambda server: int(server["port"]))
    ]
    more = ["RESTARTS"] if has_restarts else []
    lost = plan.get("lost") or {}
    ready = f"{health['ready']} ready"
    if lost:
        present = {server["name"] for server in health["servers"]}
        ready = f"{health['ready']} of {len(present | {*lost})} ready"
    took = f", {format_seconds(seconds)} in all" if seconds is not None else ""
    return [
        f"profile {plan['profile']}: {discovered}{len(enabled)} enabled, {launched} launched, {ready}{took}",
        *table(("SERVER", "PORT", "PID", "TIER", "STATE", "SECONDS TO READY", *more), rows),
        *bounded([f"missing: {name}: {why}" for name, why in lost.items()], MAX_LISTED),
    ]


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """The status JSON as a table, with columns about GPUs and speed where a server has them."""
    has_gpus = any("planned_vram_bytes" in server for server in status["servers"])
    has_speeds = any(server.get("tokens_per_second") for server in status["servers"])
    rows = [
        [
            server["name"],
            server["port"],
            server["pid"],
            server["tier"],
            server.get("threads"),
            f"{server['state']}, restart pending" if server.get("restart_pending") else server["state"],
            format_seconds(server["uptime_seconds"]) if server["pid"] and server["uptime_seconds"] is not None else "-",
            format_bytes(server["rss_bytes"]) if server["pid"] and server["rss_bytes"] is not None else "-",
            *_planned_and_loaded(ram_part(server["memory"]) if "memory" in server else None),
            server["restarts"],
            *([server.get("tokens_per_second")] if has_speeds else []),
            *(_gpu_columns(server) if has_gpus else []),
        ]
        for server in status["servers"]
    ]
    header = ["SERVER", "PORT", "PID", "TIER", "THREADS", "STATE", "UPTIME", "MEMORY", "PLANNED", "LOADED", "RESTARTS"]
    header += ["TOKENS/S"] if has_speeds else []
    header += ["GPU", "GPU MEMORY", "PLANNED ON GPU", "LOADED ON GPU"] if has_gpus else []
    return [
        f"{status['ready_servers']} of {status['total_servers']} servers ready",
        *(table(header, rows) if rows else []),
        *(
            f"{server['name']}: stuck stop: it ended by {server['stuck_stop']['signal']} after "
            f"{format_seconds(server['stuck_stop']['seconds'])}"
            for server in status["servers"]
            if "stuck_stop" in server
        ),
        *(f"{server['name']}: {text}" for server in status["servers"] for text in _watchdog_texts(server)),
    ]


def _watchdog_texts(server: Mapping[str, Any]) -> list[str]:
    """What the watchdog has to say of a server that does not simply answer, or that it has restarted."""
    found = server.get("watchdog") or {}
    texts = []
    if found.get("state") in ("suspected", "hung"):
        texts.append(f"watchdog: {found['state']} since {found['since']}: {found['detail']}")
    if found.get("last_restart"):
        count = found["restarts"]
        within = f", {count} restart{'s' * (count != 1)} within an hour" if count else ""
        texts.append(f"watchdog: last restarted it at {found['last_restart']}{within}")
    return texts


def log_lines(log: Mapping[str, Any]) -> list[str]:
    """A server's log under its name, each line with its time where that is known."""
    count = len(log["lines"])
    return [
        f"{log['name']}: {count} line{'s' * (count != 1)}",
        *(f"  {line['at']} {line['text']}" if line.get("at") else f"  {line['text']}" for line in log["lines"]),
    ]


def _gpu_columns(server: Mapping[str, Any]) -> list[str]:
    sizes = (server.get(key) for key in ("vram_bytes", "planned_vram_bytes"))
    loaded = _planned_and_loaded(gpu_part(server["memory"]) if "memory" in server else None)[1]
    return [server.get("device") or "-", *("-" if size is None else format_bytes(size) for size in sizes), loaded]


def _planned_and_loaded(sizes: tuple[int, int] | None) -> list[str]:
    if sizes is None:
        return ["-", "-"]
    share = deviation(*sizes)
    more = f" ({share:+.0%})" if share is not None else ""
    return [format_bytes(sizes[0]), f"{format_bytes(sizes[1])}{more}"]


def registry_lines(registry: Mapping[str, Any], profile: Mapping[str, Any]) -> list[str]:
    """The registry as a table; memory is for one server with the profile's parameters, without a GPU.

    The short fact has fewer keys: missing ones are shown as a dash.
    """
    chosen = {one.model["id"]: one.parameters for one in select(profile, registry["models"]).servers}
    sizes = companion_sizes(registry)
    wrong: dict[str, None] = {}
    rows = [
        [
            model["id"],
            model["tier"],
            format_bytes(model["size_bytes"]) if "size_bytes" in model else None,
            _count(model.get("parameter_count")),
            model.get("context_length"),
            _memory(model, chosen.get(model["id"], profile["parameters"]), sizes, wrong),
            model["kind"],
        ]
        for model in registry["models"]
    ]
    lines = table(("ID", "TIER", "SIZE", "PARAMETERS", "CONTEXT", "MEMORY", "KIND"), rows)
    warnings = [f"{model['id']}: {warning}" for model in registry["models"] for warning in model.get("warnings", ())]
    return (
        lines
        + bounded(warnings, MAX_WARNINGS)
        + [f'profile "{profile["name"]}" ({profile["source"]}): {reason}' for reason in wrong]
    )


def _memory(
    model: Mapping[str, Any], parameters: Mapping[str, Any], sizes: Mapping[str, int], wrong: dict[str, None]
) -> str | None:
    """The memory that a server needs, None if it cannot be estimated; errors in the parameters are added to wrong."""
    if "memory" not in model:
        return None
    effective = effective_parameters(model, parameters)
    companion = sizes.get(str(effective.get("mmproj")), 0)
    try:
        found = estimate(model["memory"], effective, kind=model["kind"], companion_bytes=companion)
    except EstimateError as error:
        wrong[str(error)] = None
        return None
    return format_bytes(found["total_bytes"])


def _count(number: int | None) -> str:
    """A human-readable count: 8.2B, 350M."""
    for limit, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number and number >= limit:
            return f"{number / limit:.1f}{suffix}"
    return str(number or "-")
