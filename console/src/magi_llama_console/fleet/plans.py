# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan would do and need, out of the result document of its job. Nothing is computed but sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

# In the order in which a summary names them.
ACTIONS = ("start", "restart", "stop", "keep")
# Fewer digits could be two plans'.
MIN_DIGITS = 16


def described(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By host: summary, downtime_seconds, memory, warnings, error, and each server with its action and what changes."""
    return {name: _host(part) for name, part in document["hosts"].items()}


def _host(part: Mapping[str, Any]) -> dict[str, Any]:
    servers = [one for one in part.get("servers", ()) if not one.get("stands_in_for")]
    return {
        "summary": summary(servers),
        "downtime_seconds": part.get("downtime_seconds"),
        "memory": memory(part.get("memory") or {}),
        "warnings": list(part.get("warnings", ())),
        "error": part.get("error"),
        "servers": [
            {
                "name": one["name"],
                "model_id": one["model_id"],
                "action": one["action"],
                "reason": one["reason"],
                "downtime_seconds": one.get("downtime_seconds"),
                "argv_diff": list(one.get("argv_diff", ())),
                "estimate": one.get("memory"),
            }
            for one in servers
        ],
    }


def summary(servers: list[Mapping[str, Any]]) -> str:
    """For example "1 to start, 2 to keep"."""
    counts = Counter(one["action"] for one in servers)
    return ", ".join(f"{counts[action]} to {action}" for action in ACTIONS if counts[action]) or "no servers"


def memory(found: Mapping[str, Any]) -> dict[str, Any]:
    """RAM, all GPUs, and each: what there is and is free, and what the servers need now, at the peak, and after."""
    stages = {stage: found.get(stage) or {} for stage in ("now", "peak", "after")}

    def at(stage: str, index: int) -> int | None:
        shares = stages[stage].get("gpu_bytes") or ()
        return shares[index] if index < len(shares) else None

    ram = {stage: need.get("ram_bytes") for stage, need in stages.items()}
    vram = {stage: need.get("vram_bytes") for stage, need in stages.items()}
    free = sum(gpu["free_bytes"] for gpu in found.get("gpus") or ())
    return {
        "ram": {"total": found.get("host_ram_bytes"), "free": found.get("host_available_bytes"), **ram},
        # All GPUs together.
        "gpu": {"total": found["host_vram_bytes"], "free": free, **vram} if found.get("host_vram_bytes") else None,
        "gpus": [
            {
                "index": index,
                "name": gpu["name"],
                "total": gpu["total_bytes"],
                "free": gpu["free_bytes"],
                **{stage: at(stage, index) for stage in stages},
            }
            for index, gpu in enumerate(found.get("gpus") or ())
        ],
    }
