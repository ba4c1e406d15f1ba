# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a plan leads to: memory before, during and after the change, seconds without a server, changed command lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .differences import argv_diff
from .inputs import Host, Server

# What is assumed of a server that was never seen to start: a disk's speed in bytes per second.
LOAD_RATE = 500e6
START_SECONDS = 2.0


@dataclass(frozen=True)
class Need:
    """What servers need at one point of a change; gpu_bytes is their share of vram_bytes on each GPU."""

    ram_bytes: int = 0
    vram_bytes: int = 0
    gpu_bytes: tuple[int, ...] = ()

    def as_data(self) -> dict[str, Any]:
        return {**asdict(self), "gpu_bytes": list(self.gpu_bytes)}


def need_of(servers: Iterable[Server], host: Host) -> Need:
    """What these servers need together. Of one that was planned for other GPUs the share of each is unknown."""
    count = len(host.gpus)
    memories = [server["memory"] for server in servers if "memory" in server]
    rows = [row for memory in memories if len(row := list(memory.get("gpu_bytes") or ())) == count]
    ram, vram = (sum(int(memory.get(key, 0)) for memory in memories) for key in ("ram_bytes", "vram_bytes"))
    return Need(ram, vram, tuple(sum(int(row[place]) for row in rows) for place in range(count)))


def most_of(*needs: Need) -> Need:
    """What is needed at most at any of these points."""
    gpus = zip(*(need.gpu_bytes for need in needs))
    return Need(
        max(need.ram_bytes for need in needs),
        max(need.vram_bytes for need in needs),
        tuple(max(sizes) for sizes in gpus),
    )


def running_now(planned: Sequence[Server], host: Host) -> list[Server]:
    """Those of the planned servers that run, as they were planned when they were started."""
    before = {str(server["name"]): server for server in host.record}
    return [before.get(str(server["name"]), server) for server in planned if server["name"] in host.running]


def start_seconds(server: Server, host: Host) -> float:
    """The seconds from a server's start until it is ready: those that it took before, else by its size."""
    known = host.ready_seconds.get(str(server["name"]))
    if known is not None:
        return round(known, 1)
    memory = server["memory"]
    return round((int(memory["ram_bytes"]) + int(memory["vram_bytes"])) / LOAD_RATE + START_SECONDS, 1)


def with_outlook(
    planned: Sequence[Server], memory: Mapping[str, Any], change: Mapping[str, Any], host: Host
) -> tuple[list[Server], dict[str, Any]]:
    """Return the servers with what each change costs, and the parts of the plan that have it for all.

    change has the steps where gateways are kept supplied, else nothing: then all are stopped before any is started.
    """
    before = {server["name"]: server for server in host.record}
    servers = [
        {
            **server,
            "downtime_seconds": _downtime(server, change, host),
            "argv_diff": argv_diff(server, before.get(server["name"]), host.running.get(server["name"])),
        }
        for server in planned
    ]
    now = need_of(running_now(planned, host), host)
    after = Need(memory["ram_bytes"], memory["vram_bytes"], tuple(memory["gpu_bytes"]))
    peak = change.get("peak")
    way = [Need(peak["ram_bytes"], peak["vram_bytes"], tuple(peak["gpu_bytes"]))] if peak else []
    stages = {"now": now, "peak": most_of(now, after, *way), "after": after}
    gpus = [{"name": gpu.label, "total_bytes": gpu.total_bytes, "free_bytes": gpu.free_bytes} for gpu in host.gpus]
    return servers, {
        "memory": {**memory, **{key: need.as_data() for key, need in stages.items()}, "gpus": gpus},
        "downtime_seconds": round(sum(server["downtime_seconds"] for server in servers), 1),
        **change,
    }


def _downtime(server: Server, change: Mapping[str, Any], host: Host) -> float:
    """The seconds for which requests for a running server find none."""
    name = str(server["name"])
    if server["action"] != "restart" or name not in host.running:
        return 0.0
    if "waves" in change:
        return float(sum(wave["away"].get(name, 0.0) for wave in change["waves"]))
    return start_seconds(server, host)
