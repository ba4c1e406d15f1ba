# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Decide whether a server is kept, started, restarted or stopped, and why."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.processes import MANAGER_CHANGED, Process
from .inputs import Host, Server
from .ports import public_port

CONFIG = "its launch config changed"
RESTART_PENDING = "restart pending"
NEW_KEYS = "its API keys changed"
# Of a server with layers on GPUs: which these are, and the groups that it needs for them.
DEVICES = "MAGI_LLAMA_DEVICES"
GROUPS = "MAGI_LLAMA_GPU_GROUPS"


def with_action(server: Server, previous: Server | None, host: Host, move: str | None = None) -> Server:
    """Return the server with its action and the reason; move says why its port changes, if it does."""
    process = host.running.get(server["name"])
    if process is None and server["name"] in host.sockets:
        return _sleeping(server, previous, move)
    if process is None:
        reason = "new" if previous is None else "not running"
        return {**server, "action": "start", "reason": f"{reason}; {move}" if move else reason}
    reasons = launch_differences(server, process)
    if CONFIG in reasons and _has_new_keys(server, previous):
        reasons[reasons.index(CONFIG)] = NEW_KEYS
    if move:
        reasons = [move, *(reason for reason in reasons if not reason.startswith("--port "))]
    if "on_demand" in server and server["name"] not in host.sockets:
        reasons.append("nothing listens for its requests")
    if server["name"] in host.unsupervised:
        why = host.unsupervised[server["name"]]
        # Another manager's launch config always differs, so that is not a second reason.
        reasons = [why, *(reason for reason in reasons if not (why.startswith(MANAGER_CHANGED) and reason == CONFIG))]
    if reasons:
        return {**server, "action": "restart", "reason": "; ".join(reasons)}
    if server["name"] in host.pending:
        why = host.pending[server["name"]]
        if host.restarts_pending:
            return {**server, "action": "restart", "reason": why}
        return {**server, "action": "keep", "reason": f"{RESTART_PENDING}: {why}"}
    return {**server, "action": "keep", "reason": "runs as planned"}


def _sleeping(server: Server, previous: Server | None, move: str | None) -> Server:
    """Return a server that has no process and a socket, which the first request would start."""
    if "on_demand" not in server:
        why = "is no longer started on demand"
    elif move:
        why = move
    elif (previous or {}).get("revision") != server["revision"]:
        why = CONFIG
    else:
        return {**server, "action": "keep", "reason": "sleeps until a request"}
    return {**server, "action": "restart", "reason": why}


def _has_new_keys(server: Server, previous: Server | None) -> bool:
    before = (previous or {}).get("api_key_stamp")
    return bool(before) and before != server.get("api_key_stamp")


def launch_differences(server: Server, process: Process) -> list[str]:
    """Return the reasons for a restart: how the process's command line and environment differ from the plan."""
    env = process.env
    reasons = argv_changes(_launched_argv(server, process), server["argv"])
    if env.get("MAGI_LLAMA_RUNTIME") != server["env"]["MAGI_LLAMA_RUNTIME"]:
        reasons.append("llama-server itself changed")
    if env.get("MAGI_LLAMA_MODEL") != server["env"]["MAGI_LLAMA_MODEL"]:
        reasons.append("the model's file changed")
    before, after = (text.get(DEVICES) or "none" for text in (env, server["env"]))
    if before != after:
        reasons.append(f"its GPUs changed ({before} → {after})")
    if process.stray:
        reasons.append(f"its environment has {', '.join(process.stray)}")
    if not reasons and env.get("MAGI_LLAMA_REVISION") != server["revision"]:
        reasons.append(CONFIG)
    return reasons


def _launched_argv(server: Server, process: Process) -> list[str]:
    """Return the command line that a server's process was launched with."""
    running = list(process.argv)
    if process.env.get("MAGI_LLAMA_REVISION") != server.get("revision"):
        return running
    # With a wrapper script, the process shows the wrapped program or the interpreter, and may have extra flags. The
    # revision identifies what was launched.
    arguments = server["argv"][1:]
    return [*server["argv"][:1], *(arguments if _holds(running, arguments) else running[1:])]


def argv_diff(server: Server, previous: Server | None, process: Process | None) -> list[str]:
    """Return what an action changes on a server's command line: "- --flag value" and "+ --flag value", a flag a line.

    previous is its record, whose command line counts where nothing runs.
    """
    if server["action"] == "keep":
        return []
    recorded: Sequence[str] = previous["argv"] if previous else ()
    before = _flag_lines(_launched_argv(server, process) if process else recorded)
    after = _flag_lines(server["argv"]) if server["action"] != "stop" else []
    return [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ")]


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    """Return whether a command line contains these words in sequence."""
    return any(words[place : place + len(part)] == part for place in range(len(words) - len(part) + 1))


def argv_changes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return how a command line differs from another one: "--flag value → value" for each flag."""
    if list(old) == list(new):
        return []
    before, after = _by_flag(old), _by_flag(new)
    changes = []
    for flag in sorted({*before, *after}):
        if before.get(flag) != after.get(flag):
            changes.append(f"{flag} {before.get(flag, 'unset')} → {after.get(flag, 'unset')}")
    return changes or ["the order of its flags changed"]


def _by_flag(argv: Sequence[str]) -> dict[str, str]:
    """Return a command line as {flag: values}; the program itself is under "program"."""
    flags: dict[str, list[str]] = {"program": list(argv[:1])}
    current = "program"
    for word in argv[1:]:
        if word.startswith("--"):
            current = word
            flags.setdefault(current, [])
        else:
            flags[current].append(word)
    return {flag: " ".join(values) or "on" for flag, values in flags.items()}


def stopped_server(
    name: str, previous: Server | None, process: Process | None, lost: str | None, profile: Mapping[str, Any]
) -> Server:
    """Return a server that is stopped or forgotten; lost says what became of its model, if the profile wants it."""
    port = public_port(process) if process else None
    server = previous or {"name": name, "model_id": name, "port": port, "argv": list(process.argv) if process else []}
    if lost and process is None:
        lost = f"{lost}, and it does not run"
    if "stands_in_for" in server:
        lost = f"stood in for {server['stands_in_for']}, which serves by itself"
    reason = lost or f'profile "{profile["name"]}" does not enable it'
    return {**server, "action": "stop", "reason": reason}


def pending_warnings(plan: Mapping[str, Any]) -> list[str]:
    """Return a warning about servers that are left alone although their launch config is another one now."""
    names = [str(server["name"]) for server in plan["servers"] if server["reason"].startswith(RESTART_PENDING)]
    if not names:
        return []
    return [
        f"{', '.join(names)}: {RESTART_PENDING}, because the launch config changed after the start. Use restart.yml -e "
        f"servers={','.join(names)}, or servers_restart auto."
    ]


def extra_warnings(
    plan: Mapping[str, Any], stray_variables: Sequence[str], disabled: Sequence[str], foreign: Sequence[str] = ()
) -> list[str]:
    """Return warnings from outside the plan: variables that systemd sets for every service, and disabled units.

    foreign are units that run a llama-server of another origin.
    """
    warnings = []
    if stray_variables:
        stray = ", ".join(stray_variables)
        warnings.append(f"systemd sets {stray} for every service; our servers do not get that.")
    warnings += [
        f"The unit {unit} runs a llama-server that this collection does not manage: it takes memory and ports, and "
        f"none of these settings applies to it. If it is not wanted: systemctl disable --now {unit.split()[0]}."
        for unit in foreign
    ]
    off = _kept(plan, disabled)
    if off:
        warnings.append(f"{', '.join(off)}: unit was disabled manually; re-enabled (without a restart).")
    return warnings


def has_changes(plan: Mapping[str, Any], disabled: Sequence[str]) -> bool:
    """Return whether any server has to be started, restarted, stopped or re-enabled."""
    return bool(_kept(plan, disabled)) or any(server["action"] != "keep" for server in plan["servers"])


def drift(plan: Mapping[str, Any], disabled: Sequence[str]) -> dict[str, str]:
    """What a plan would do to each server that it does not leave as it is: action and reason by name."""
    actions = {
        str(server["name"]): f"to {server['action']}, {server['reason']}"
        for server in plan["servers"]
        if server["action"] != "keep"
    }
    return {**dict.fromkeys(_kept(plan, disabled), "to enable at boot"), **actions}


def _kept(plan: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    kept = {server["name"] for server in plan["servers"] if server["action"] == "keep"}
    return [name for name in names if name in kept]


def plan_diff(running: Mapping[str, Process], plan: Mapping[str, Any]) -> dict[str, str]:
    """Return a module diff of the running and the planned command lines."""
    before = {name: process.argv for name, process in running.items()}
    after = {server["name"]: server["argv"] for server in plan["servers"] if server["action"] != "stop"}
    return {
        "before": _text(before),
        "after": _text(after),
        "before_header": "running",
        "after_header": "planned",
    }


def _text(servers: Mapping[str, Sequence[str]]) -> str:
    """Return command lines by server, one line per flag."""
    lines = []
    for name in sorted(servers):
        lines += [f"{name}:", *(f"  {line}" for line in _flag_lines(servers[name]))]
    return "\n".join(lines) + "\n" if lines else ""


def _flag_lines(argv: Sequence[str]) -> list[str]:
    """Return a command line with a line for the program and one for each flag."""
    lines: list[str] = []
    for word in argv:
        if word.startswith("--") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines
