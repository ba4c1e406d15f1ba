# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts: how each is, its memory, drift, and which run has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query

from ...console import Console
from ...fleet import facts
from ..deps import ConsoleDep
from ..errors import errors
from ..fleet_answers import age, hosts_of
from ..security import Reader
from . import shapes

router = APIRouter(prefix="/api/v1", tags=["fleet"])
Name = Annotated[str | None, Query(max_length=253)]


@router.get("/hosts", responses=errors(404, 503))
async def list_hosts(console: ConsoleDep, _: Reader, group: Name = None, host: Name = None) -> shapes.Hosts:
    """The hosts of the inventory that run servers, in its order."""
    hosts = await hosts_of(console, host, group)
    running = {name: job.id for job in await console.store.jobs(("running",), 1000) for name in job.hosts}
    return shapes.Hosts(hosts=[described(console, one, running) for one in hosts], **age(hosts))


def described(console: Console, host: facts.Host, running: Mapping[str, str]) -> shapes.Host:
    inventory = console.fleet.inventory.hosts[host.name]
    return shapes.Host(
        name=host.name,
        address=inventory.address,
        groups=list(inventory.groups),
        state=host.state,
        as_of=host.as_of,
        source=host.source,
        stale_since=console.fleet.stale_since(host),
        servers_total=len(host.servers),
        servers_ready=host.ready_servers,
        ram=memory(host.ram),
        gpus=[shapes.Gpu(index=gpu.index, name=gpu.name, **memory(gpu.memory).model_dump()) for gpu in host.gpus],
        drift=None if host.drift is None else [f"{name}: {reason}" for name, reason in host.drift.items()],
        drift_since=host.drift_since,
        profile=host.profile,
        deployed_at=host.deployed_at,
        job=running.get(host.name),
    )


def memory(found: facts.Memory) -> shapes.Memory:
    return shapes.Memory(total=found.total_bytes, free=found.free_bytes, planned=found.planned_bytes)
