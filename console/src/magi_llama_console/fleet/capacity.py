# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What fits where: a host's free memory against what each model needs.

The need is what a plan has estimated for a server of the model. A model that was never planned has its file's size
instead, and says so: it then needs at least that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .facts import Host

Place = Literal["gpu", "ram", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a server of a model needs; basis says whether a plan estimated them or it is the file's size."""

    needs_bytes: int
    basis: Literal["plan", "file"]


def needs(hosts: Iterable[Host]) -> dict[str, Need]:
    """The need of each model, by id: the largest estimate of its deployed servers, else the size of its file."""
    found: dict[str, Need] = {}
    known = list(hosts)
    for host in known:
        for model in host.models:
            size = model.get("size_bytes")
            if size and size > (found[model["id"]].needs_bytes if model["id"] in found else 0):
                found[model["id"]] = Need(size, "file")
    planned: dict[str, int] = {}
    for host in known:
        for server in host.servers.values():
            if server.planned_bytes:
                planned[server.model_id] = max(planned.get(server.model_id, 0), server.planned_bytes)
    return {**found, **{model: Need(size, "plan") for model, size in planned.items()}}


def place(host: Host, need: Need) -> Place:
    """Where one more server of this need fits on a host, with what is free there now."""
    vram = [gpu.memory.free_bytes for gpu in host.gpus if gpu.memory.free_bytes is not None]
    if vram and need.needs_bytes <= max(vram):
        return "gpu"
    if host.ram.free_bytes is None:
        return "unknown"
    return "ram" if need.needs_bytes <= host.ram.free_bytes else "no"


def capacity(hosts: Iterable[Host]) -> list[dict[str, Any]]:
    """For each host its free bytes, and for each model where one more server of it fits."""
    known = list(hosts)
    wanted: Mapping[str, Need] = needs(known)
    return [
        {
            "host": host.name,
            "ram_free_bytes": host.ram.free_bytes,
            "vram_free_bytes": [gpu.memory.free_bytes for gpu in host.gpus],
            "models": [
                {
                    "model_id": model,
                    "needs_bytes": need.needs_bytes,
                    "basis": need.basis,
                    "is_on_host": any(one["id"] == model for one in host.models),
                    "fits": place(host, need),
                }
                for model, need in sorted(wanted.items())
            ],
        }
        for host in known
    ]
