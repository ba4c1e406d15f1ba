# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""How a host's plan differs from an earlier one, as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .differences import DEVICES, argv_changes
from .inputs import Server

# Variables with a meaning of their own; a revision follows from all others.
_ENVIRONMENT = {
    "MAGI_LLAMA_MODEL": "the model's file changed",
    "MAGI_LLAMA_RUNTIME": "llama-server itself changed",
    DEVICES: "its GPUs changed",
}
_FOLLOWS = frozenset(
    {
        "env",
        "argv",
        "argv_diff",
        "revision",
        "generation",
        "sandbox",
        "model_stamp",
        "content_stamp",
        "memory_max_bytes",
    }
)
# What the sentences about servers say already, or what people do not decide by.
_NOT_COMPARED = frozenset({"schema_version", "servers", "configs", "hash", "memory", "peak", "away", "warnings"})
_NOT_COMPARED_OF_SERVER = frozenset({"memory", "downtime_seconds", "reason", "action"})


def plan_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each server that differs, and for each other part of the plan."""
    was = {str(server["name"]): server for server in before["servers"]}
    found = {str(server["name"]): server for server in now["servers"]}
    lines = [
        f"{name}: {text}"
        for name in sorted({*was, *found})
        for text in [_server_change(was.get(name), found.get(name))]
        if text
    ]
    for key in sorted({*before, *now} - _NOT_COMPARED - {"downtime_seconds"}):
        old, new = before.get(key), now.get(key)
        if key == "waves":
            old, new = _steps(old), _steps(new)
        if key == "lost":
            old, new = sorted(old or ()), sorted(new or ())
        if old != new:
            lines.append(f"{key} {old} → {new}" if _is_short(old) and _is_short(new) else f"{key} changed")
    return lines or _changed_configs(before.get("configs") or {}, now.get("configs") or {})


def _server_change(was: Server | None, now: Server | None) -> str:
    """Return how a server's plan differs; empty if it does not."""
    if was is None or now is None:
        there = was or now or {}
        return f"to {there['action']}, {there['reason']}; " + ("not before" if was is None else "not any more")
    changes = []
    if was["action"] != now["action"]:
        why = f", {now['reason']}" if now.get("reason") else ""
        changes.append(f"was to {was['action']}, is to {now['action']} now{why}")
    changes += argv_changes(was["argv"], now["argv"])
    env, env_now = was.get("env") or {}, now.get("env") or {}
    changes += [text for name, text in _ENVIRONMENT.items() if env.get(name) != env_now.get(name)]
    changes += [
        f"{key} {was.get(key)} → {now.get(key)}"
        if _is_short(was.get(key)) and _is_short(now.get(key))
        else f"{key} changed"
        for key in sorted({*was, *now} - _FOLLOWS - _NOT_COMPARED_OF_SERVER)
        if was.get(key) != now.get(key) and not (key == "port" and changes)
    ]
    if not changes and was.get("argv_diff") != now.get("argv_diff"):
        changes.append("what runs there now is another command line")
    if not changes and any(was.get(key) != now.get(key) for key in _FOLLOWS):
        changes.append("its launch config changed")
    return "; ".join(changes)


def _changed_configs(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a line for each launch config that would be another one."""
    return [
        f"the launch config {path} differs" for path in sorted({*before, *now}) if before.get(path) != now.get(path)
    ]


def _steps(waves: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in wave.items() if key != "away"} for wave in waves or ()]


def _is_short(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))
