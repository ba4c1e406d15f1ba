# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoints of the system that this one grew out of, with their paths and keys unchanged.

What changes something runs a job, and waits for it as long as a server may take to start (?wait=seconds). When the job
takes longer the answer is 202, with what is known by then. The age of what is answered is in headers, since the keys of
the bodies are fixed: X-Magi-As-Of and X-Magi-Source; X-Magi-Job has the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from ..console import Console
from ..fleet.facts import Host, Server
from .deps import ConsoleDep
from .errors import errors
from .fleet_answers import age, hosts_of, models_age, servers_of
from .problems import Problem, unknown
from .security import Reader
from .v1 import models as v1_models
from .v1 import profiles as v1_profiles
from .v1.shapes import Bytes, Model
from .waiting import CHANGES, Change, ChangeDep, say_age

router = APIRouter(prefix="/api/models", tags=["old endpoints"])
HostName = Annotated[str | None, Query(max_length=253, description="One host, where the inventory has several.")]


class Registry(BaseModel):
    """All hosts' models; updated_at is when the oldest of their registries was read."""

    models: list[Model]
    total: int
    updated_at: str | None


class OldServer(BaseModel):
    host: str
    name: str
    model_id: str
    display_name: str | None
    port: int
    pid: int | None
    is_ready: bool
    tier: str | None
    state: str
    uptime_seconds: int | None
    rss_bytes: Bytes
    restarts: int


class ServerList(BaseModel):
    servers: list[OldServer]
    total: int


class Status(BaseModel):
    total_servers: int
    ready_servers: int
    servers: list[OldServer]


class StartedFailed(BaseModel):
    """Names of servers."""

    started: list[str]
    failed: list[str]


class Stopped(BaseModel):
    """Names of servers."""

    stopped: list[str]


class OneServer(BaseModel):
    name: str
    port: int
    status: Annotated[str, Field(description="Its state: ready, stopped, failed, …")]


class ProfileNames(BaseModel):
    """active_profile is that of all hosts; null where they have several, or none."""

    profiles: list[str]
    active_profile: str | None


class Activate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    profile_name: Annotated[str, Field(max_length=64)]


class Activated(BaseModel):
    profile: str
    started: list[str]


@router.get("/registry", responses=errors(404, 503))
async def registry(response: Response, console: ConsoleDep, who: Reader, host: HostName = None) -> Registry:
    found = await v1_models.list_models(console, who, host)
    say_age(response, models_age(await hosts_of(console, host)))
    return Registry(models=found.models, total=len(found.models), updated_at=found.as_of)


@router.get("/servers", responses=errors(404, 503))
async def servers(response: Response, console: ConsoleDep, _: Reader, host: HostName = None) -> ServerList:
    found = await _servers(response, console, host)
    return ServerList(servers=found, total=len(found))


@router.get("/status", responses=errors(404, 503))
@router.get("/management/servers", responses=errors(404, 503))
async def status(response: Response, console: ConsoleDep, _: Reader, host: HostName = None) -> Status:
    found = await _servers(response, console, host)
    return Status(total_servers=len(found), ready_servers=sum(one.is_ready for one in found), servers=found)


@router.get("/profiles", responses=errors(503))
async def profiles(response: Response, console: ConsoleDep, _: Reader) -> ProfileNames:
    known = await v1_profiles.read_all(console)
    hosts = await hosts_of(console, None)
    say_age(response, age(hosts))
    active = {host.profile for host in hosts}
    return ProfileNames(profiles=list(known), active_profile=active.pop() if len(active) == 1 else None)


@router.post("/start", responses=CHANGES)
async def start_all(change: ChangeDep, host: HostName = None) -> StartedFailed:
    """Start all servers that are deployed. Where none is, the profile of the inventory is deployed."""
    console = change.console
    hosts = await hosts_of(console, host)
    is_deployed = any(one.servers for one in hosts)
    verb, variables = ("start", {"servers": ["all"]}) if is_deployed else ("site", {})
    run = await change.run(verb, {**variables, "limit": [host] if host else []})
    found = servers_of(await hosts_of(console, host))
    if run.has_failed and not any(one.is_ready for one in found):
        raise await run.problem()
    return StartedFailed(
        started=[one.name for one in found if one.is_ready], failed=[one.name for one in found if not one.is_ready]
    )


@router.post("/stop", responses=CHANGES)
async def stop_all(change: ChangeDep, host: HostName = None) -> Stopped:
    """Stop all servers."""
    hosts = await hosts_of(change.console, host)
    if not servers_of(hosts):
        say_age(change.response, age(hosts))
        return Stopped(stopped=[])
    run = await change.run("stop", {"servers": ["all"], "limit": [host] if host else []})
    if run.has_failed:
        raise await run.problem()
    found = servers_of(await hosts_of(change.console, host))
    return Stopped(stopped=[one.name for one in found if one.state == "stopped"])


@router.post("/{name}/start", responses=CHANGES)
async def start_one(name: str, change: ChangeDep, host: HostName = None) -> OneServer:
    """Start one server by its name."""
    return await _change_one(change, "start", name, host)


@router.post("/{name}/stop", responses=CHANGES)
async def stop_one(name: str, change: ChangeDep, host: HostName = None) -> OneServer:
    """Stop one server by its name."""
    return await _change_one(change, "stop", name, host)


@router.post("/profile/activate", responses=CHANGES)
async def activate(body: Activate, change: ChangeDep) -> Activated:
    """Deploy a profile on all hosts."""
    run = await change.run("site", {"profile": body.profile_name})
    if run.has_failed:
        raise await run.problem()
    found = servers_of(await hosts_of(change.console, None))
    return Activated(profile=body.profile_name, started=[one.name for one in found if one.is_ready])


async def _change_one(change: Change, verb: str, name: str, host: str | None) -> OneServer:
    server = _one(await hosts_of(change.console, host), name)
    run = await change.run(verb, {"servers": [name], "limit": [server.host]})
    after = change.console.fleet.host(server.host).servers.get(name, server)
    # A server that does not start is an answer; a run that did not get that far is an error.
    if run.has_failed and after.reason is None:
        raise await run.problem()
    return OneServer(name=name, port=after.port, status=after.state)


def _one(hosts: Sequence[Host], name: str) -> Server:
    """The one server of this name. Raises Problem: 404 without one, 409 with several."""
    found = [host.servers[name] for host in hosts if name in host.servers]
    if not found:
        raise unknown("server", name, {server for host in hosts for server in host.servers})
    if len(found) > 1:
        names = [server.host for server in found]
        raise Problem(409, f"{name} is on {len(names)} hosts.", fix=f"Name one: ?host={names[0]}", nearest=names[:3])
    return found[0]


async def _servers(response: Response, console: Console, host: str | None) -> list[OldServer]:
    hosts = await hosts_of(console, host)
    say_age(response, age(hosts))
    return [
        OldServer.model_construct(**{key: getattr(one, key) for key in OldServer.model_fields})
        for one in servers_of(hosts)
    ]
