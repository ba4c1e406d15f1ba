# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers: what is deployed, how it is, and all that is known of one."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic_core import to_json

from ...console import Console
from ...fleet import facts, received
from ...fleet.sweep import read_slots
from ..deps import ConsoleDep
from ..errors import errors
from ..fleet_answers import age, hosts_of, servers_of
from ..problems import unknown
from ..security import Reader
from . import shapes

router = APIRouter(prefix="/api/v1", tags=["fleet"])
Name = Annotated[str | None, Query(max_length=253)]
KEYS = tuple(shapes.Server.model_fields)
VALUES = attrgetter(*KEYS)
MAX_LINES = 200
# As many of its host's newest events are looked through for lines about a server; types that have such lines.
EVENTS = 500
TYPES = ("server_ready", "server_failed", "server_stopped", "drained", "line", "warning", "task_failed")
NEEDS = {"ram_bytes": None, "vram_bytes": None}


@router.get("/servers", responses=errors(404, 503))
async def list_servers(
    console: ConsoleDep,
    _: Reader,
    host: Name = None,
    model: Name = None,
    tier: Annotated[str | None, Query(max_length=16)] = None,
    state: shapes.ServerState | None = None,
) -> shapes.Servers:
    """The deployed servers, in the order of hosts and ports. One server's name may be on many hosts."""
    hosts = await hosts_of(console, host)
    found = [
        described(one)
        for one in servers_of(hosts)
        if model in (None, one.model_id) and tier in (None, one.tier) and state in (None, one.state)
    ]
    # Not validated again, which takes longer than all else where there are hundreds; a test compares it with the shape.
    return Response(to_json({**age(hosts), "servers": found}, inf_nan_mode="null"), media_type="application/json")  # type: ignore[return-value]


def described(server: facts.Server) -> dict[str, Any]:
    """The keys of shapes.Server."""
    return dict(zip(KEYS, VALUES(server), strict=True))


@router.get("/servers/{host}/{name}", responses=errors(404, 503))
async def get_server(host: str, name: str, console: ConsoleDep, who: Reader) -> shapes.ServerDetail:
    """One server, with its command line, the names of its environment, and its memory as planned and as it is."""
    (found,) = await hosts_of(console, host)
    if name not in found.servers:
        raise unknown("server", name, found.servers)
    server = found.servers[name]
    return shapes.ServerDetail(
        **described(server),
        **age([found]),
        argv=None if server.argv is None else list(server.argv),
        environment_names=None if server.environment_names is None else list(server.environment_names),
        slots_total=server.slots,
        slots=await slots_now(console, server),
        context_size=server.context_size,
        log=await lines_about(console, server),
        # Prompts can be in it.
        log_tail=list(server.log) if server.log is not None and who.is_operator else None,
        log_tail_as_of=server.log_as_of,
        rates=[shapes.Rate(at=at, tokens_per_second=rate) for at, rate in server.rates],
        estimate=None if server.estimate is None else shapes.Footprint(**{**NEEDS, **server.estimate}),
        truth=truth(server),
        revision=server.revision,
    )


def truth(server: facts.Server) -> shapes.Footprint | None:
    """Its memory as llama-server reports it, in RAM and on GPUs."""
    if server.truth is None or "loaded_bytes" not in server.truth:
        return None
    vram = server.truth.get("loaded_gpu_bytes", 0)
    return shapes.Footprint(**{**server.truth, "ram_bytes": server.truth["loaded_bytes"] - vram, "vram_bytes": vram})


async def slots_now(console: Console, server: facts.Server) -> list[shapes.Slot] | None:
    """What the server says of its slots, where it is ready, shows them without a key, and can be reached."""
    if not server.is_ready or "--no-slots" in (server.argv or ("--no-slots",)):
        return None
    inventory = console.fleet.inventory.hosts[server.host]
    found = await read_slots(server, inventory.address, inventory.is_local)
    return None if found is None else [shapes.Slot(**one) for one in found]


async def lines_about(console: Console, server: facts.Server) -> list[str]:
    """What the newest events of its host say of a server: reasons with the last lines of its log, warnings, lines."""
    found: list[str] = []
    for event in [one.event for one in await console.store.newest_events(server.host, TYPES, EVENTS)]:
        data = received.mapping(event.get("data"))
        said = received.text(data.get("text")) or received.text(data.get("msg")) or ""
        if data.get("server") == server.name:
            reasons = filter(None, (received.text(data.get("reason")), received.text(data.get("fix"))))
            said = "\n".join((str(event["type"]).replace("_", " "), *reasons))
        elif server.name not in said:
            continue
        found += [f"{event.get('at')}  {line}" for line in said.splitlines() if line.strip()]
    return found[-MAX_LINES:]
