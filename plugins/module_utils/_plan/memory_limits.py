# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The memory of all servers against what there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.text import format_bytes
from .gpu import Gpu
from .inputs import Host, PlanError, Server, Settings

# What --fit keeps free on each GPU, in MiB for --fit-target.
FIT_MARGIN_BYTES = 1024 * 1024**2


# What stays with the system: kernel, services, logins. Small hosts have less of it, large ones more page tables.
RESERVE_SHARE = 0.05
LEAST_RESERVE_BYTES = 256 * 1024**2
MOST_RESERVE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class _Limit:
    """One kind of memory: what it is, what the servers need of it, and what there is; detail says who has the rest."""

    what: str
    need_bytes: int
    limit_bytes: int
    key: str
    detail: str = ""


def is_resident(server: Mapping[str, Any]) -> bool:
    """Return whether a server's memory is to be there at any time: what is not pinned makes room for another one."""
    part = server.get("on_demand")
    return part is None or bool(part["pinned"])


def at_most(servers: Sequence[Server], need: Callable[[Mapping[str, Any]], int]) -> int:
    """Return what servers need of one kind of memory at once: all resident ones, and the largest of the others."""
    resident = sum(need(server["memory"]) for server in servers if is_resident(server))
    return resident + max((need(server["memory"]) for server in servers if not is_resident(server)), default=0)


def gpu_limit(gpu: Gpu, *, starts: bool) -> int:
    """What our servers may have of a GPU in all. starts: whether one is to be started there, which wants a margin."""
    return max(0, gpu.usable_bytes - (FIT_MARGIN_BYTES if starts else 0))


def on_gpus(servers: Sequence[Server], gpus: Sequence[Gpu]) -> list[int]:
    """The bytes that servers need on each GPU at once, at most."""
    # A server that is left running may have been planned when there were other GPUs.

    def need(memory: Mapping[str, Any], place: int) -> int:
        row = list(memory.get("gpu_bytes") or [])
        return int(row[place]) if len(row) == len(gpus) else 0

    return [at_most(servers, lambda memory, place=place: need(memory, place)) for place in range(len(gpus))]  # type: ignore[misc]


def check_memory(
    planned: Sequence[Server], profile: Mapping[str, Any], settings: Settings, host: Host
) -> dict[str, Any]:
    """The need of all servers against the budget, the host's RAM and its GPUs. Raises PlanError."""
    staying = [server for server in planned if server["action"] != "stop"]
    ram, vram, both = (
        at_most(staying, lambda memory, keys=keys: sum(int(memory[key]) for key in keys))  # type: ignore[misc]
        for keys in (("ram_bytes",), ("vram_bytes",), ("ram_bytes", "vram_bytes"))
    )
    budget = profile.get("memory_budget_bytes")
    limits = _limits(staying, ram, host)
    if budget is not None:
        limits.insert(0, _Limit("the profile's memory_budget", both, budget, "total_bytes"))
    for limit in limits:
        if limit.need_bytes > limit.limit_bytes and not settings.memory_overcommit:
            raise PlanError(f'profile "{profile["name"]}" ({profile["source"]}): {_refusal(limit, staying, vram)}')
    return {
        "needed_bytes": both,
        "ram_bytes": ram,
        "vram_bytes": vram,
        "budget_bytes": budget,
        "host_ram_bytes": host.memory.total_bytes,
        "host_available_bytes": host.memory.available_bytes,
        "gpu_bytes": on_gpus(staying, host.gpus),
        "host_vram_bytes": sum(gpu.total_bytes for gpu in host.gpus),
        "usable_vram_bytes": sum(gpu.usable_bytes for gpu in host.gpus),
    }


def _limits(staying: Sequence[Server], ram: int, host: Host) -> list[_Limit]:
    limits = [_ram_limit(staying, ram, host)]
    starting = on_gpus([server for server in staying if server["action"] != "keep"], host.gpus)
    for gpu, need, new in zip(host.gpus, on_gpus(staying, host.gpus), starting):
        texts = [f"{format_bytes(gpu.total_bytes)} in all", f"{format_bytes(gpu.free_bytes)} free"]
        texts += [f"{format_bytes(gpu.held_bytes)} held by our servers"] if gpu.held_bytes else []
        texts += [*gpu.holders, f"{format_bytes(FIT_MARGIN_BYTES)} to spare"]
        limit = gpu_limit(gpu, starts=new > 0)
        limits.append(_Limit(f"the memory of GPU {gpu.label}", need, limit, "vram_bytes", "; ".join(texts)))
    return limits


def ram_reserve(total_bytes: int) -> int:
    """The bytes of a host's RAM that servers leave to the system: a twentieth of it, within bounds."""
    reserve = min(max(int(total_bytes * RESERVE_SHARE), LEAST_RESERVE_BYTES), MOST_RESERVE_BYTES)
    # A container of 512 MiB has its kernel elsewhere.
    return min(reserve, total_bytes // 8)


def _ram_limit(staying: Sequence[Server], ram: int, host: Host) -> _Limit:
    """The RAM for all servers: less the reserve, and where one is to be started less what other programs hold."""
    total, available = host.memory.total_bytes, host.memory.available_bytes
    reserve = ram_reserve(total)
    held = sum(process.rss_bytes for process in host.running.values())
    texts = [f"{format_bytes(total)} in all", f"{format_bytes(available)} available"]
    texts += [f"{format_bytes(held)} held by our servers"] if held else []
    texts += [f"{format_bytes(reserve)} for the system"]
    usable = total - reserve
    if any(server["action"] != "keep" for server in staying):
        usable = min(usable, available + held)
    return _Limit("this host's RAM", ram, usable, "ram_bytes", "; ".join(texts))


def _refusal(limit: _Limit, staying: Sequence[Server], vram: int) -> str:
    largest = sorted(staying, key=lambda server: -int(server["memory"].get(limit.key, 0)))
    listing = ", ".join(f"{s['name']} {memory_text(s['memory'])}" for s in largest[:8])
    more = f" and {len(largest) - 8} more" if len(largest) > 8 else ""
    what = limit.what + (f" that they can use ({limit.detail})" if limit.detail else "")
    need = format_bytes(limit.need_bytes)
    if limit.key == "total_bytes" and vram:
        need = f"{format_bytes(limit.need_bytes - vram)} of RAM and {format_bytes(vram)} of GPU memory"
    fewer = " fewer layers on the GPU (n_gpu_layers: auto)," if limit.key == "vram_bytes" else ""
    return (
        f"the servers need {need}, {what} is {format_bytes(limit.limit_bytes)}: {listing}{more}. Lower ctx_size, "
        f"parallel or instances,{fewer} enable fewer models, quantise the KV cache (cache_type_k, cache_type_v), or "
        "set servers_memory_overcommit."
    )


def memory_text(memory: Mapping[str, Any]) -> str:
    """A server's need for messages; RAM and GPU memory are never added up."""
    vram = int(memory.get("vram_bytes", 0))
    if not vram:
        return format_bytes(memory.get("ram_bytes", memory.get("total_bytes", 0)))
    return f"{format_bytes(memory.get('ram_bytes', 0))} RAM + {format_bytes(vram)} GPU"


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
