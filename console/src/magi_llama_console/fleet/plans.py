# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan would do and need, out of the result document of its job. Nothing is computed but sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from . import received

# In the order in which a summary names them.
ACTIONS = ("start", "restart", "stop", "keep")
# Fewer digits could be two plans'.
MIN_DIGITS = 16


def described(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By host: summary, downtime_seconds, memory, warnings, error, and each server with its action and what changes."""
    return {name: _host(part) for name, part in document["hosts"].items()}


def _host(part: Any) -> dict[str, Any]:
    part = part if isinstance(part, dict) else {}
    error = received.text(part.get("error"))
    try:
        servers = [one for one in received.planned(part.get("servers", [])) if not one.get("stands_in_for")]
    except received.Unusable as found:
        servers, error = [], error or f"The host's plan cannot be used: {found}."
    return {
        "summary": summary(servers),
        "downtime_seconds": received.number(part.get("downtime_seconds")),
        "memory": memory(part.get("memory")),
        "warnings": received.texts(part.get("warnings")),
        "error": error,
        "servers": [
            {
                "name": one["name"],
                "model_id": one["model_id"],
                "action": one["action"],
                "reason": one["reason"],
                "downtime_seconds": one.get("downtime_seconds"),
                "argv_diff": one.get("argv_diff", []),
                "estimate": one.get("memory"),
            }
            for one in servers
        ],
    }


def summary(servers: Sequence[Mapping[str, Any]]) -> str:
    """For example "1 to start, 2 to keep"."""
    counts = Counter(one["action"] for one in servers)
    return ", ".join(f"{counts[action]} to {action}" for action in ACTIONS if counts[action]) or "no servers"


def memory(value: Any) -> dict[str, Any]:
    """RAM, all GPUs, and each: what there is and is free, and what the servers need now, at the peak, and after."""
    found = received.mapping(value)
    stages = {stage: received.mapping(found.get(stage)) for stage in ("now", "peak", "after")}

    def at(stage: str, index: int) -> int | None:
        shares = stages[stage].get("gpu_bytes")
        return received.whole(shares[index]) if isinstance(shares, list) and index < len(shares) else None

    def of(key: str) -> dict[str, int | None]:
        return {stage: received.whole(need.get(key)) for stage, need in stages.items()}

    listed = found.get("gpus")
    gpus = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    ram = {
        "total": received.whole(found.get("host_ram_bytes")),
        "free": received.whole(found.get("host_available_bytes")),
        **of("ram_bytes"),
    }
    vram = received.whole(found.get("host_vram_bytes"))
    free = sum(received.whole(gpu.get("free_bytes")) or 0 for gpu in gpus)
    return {
        "ram": ram,
        # All GPUs together.
        "gpu": {"total": vram, "free": free, **of("vram_bytes")} if vram else None,
        "gpus": [
            {
                "index": index,
                "name": received.text(gpu.get("name")) or "",
                "total": received.whole(gpu.get("total_bytes")),
                "free": received.whole(gpu.get("free_bytes")),
                **{stage: at(stage, index) for stage in stages},
            }
            for index, gpu in enumerate(gpus)
        ],
    }
