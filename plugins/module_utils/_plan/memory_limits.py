# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The memory of all servers against what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.text import format_bytes
from .inputs import Host, PlanError, Server, Settings


def check_memory(
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


def growth_warnings(planned: Sequence[Server], memory: Mapping[str, Any]) -> list[str]:
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
