# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load and unload a model on all hosts, as llama-server's router does on one. A gateway asks for its operators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from ..fleet_answers import hosts_of, servers_of
from ..problems import unknown
from ..waiting import CHANGES, Change, ChangeDep

router = APIRouter(prefix="/api/v1/models", tags=["fleet"])
ModelId = Annotated[str, Path(max_length=253, description="As in the list of models.")]


class ServerState(BaseModel):
    """state is as in the list of servers: ready, stopped, failed, …"""

    host: str
    name: str
    state: str


class ModelServers(BaseModel):
    """Each server of the model, with its state after the job, or as far as it is known where the answer is 202."""

    model_id: str
    servers: list[ServerState]


@router.post("/{model_id}/load", responses=CHANGES)
async def load(model_id: ModelId, change: ChangeDep) -> ModelServers:
    """Start the servers that are deployed for a model, and wait for the job; X-Magi-Job has it."""
    return await _change(model_id, change, "start")


@router.post("/{model_id}/unload", responses=CHANGES)
async def unload(model_id: ModelId, change: ChangeDep) -> ModelServers:
    """Stop the servers of a model: gateways send them no more requests, and those under way are finished."""
    return await _change(model_id, change, "stop")


async def _change(model_id: str, change: Change, verb: Literal["start", "stop"]) -> ModelServers:
    known = servers_of(await hosts_of(change.console, None))
    found = [one for one in known if one.model_id == model_id]
    if not found:
        raise unknown("deployed model", model_id, {one.model_id for one in known})
    names, hosts = (sorted({getattr(one, key) for one in found}) for key in ("name", "host"))
    run = await change.run(verb, {"servers": names, "limit": hosts})
    if run.has_failed:
        raise await run.problem()
    after = [one for one in servers_of(await hosts_of(change.console, None)) if one.model_id == model_id]
    return ModelServers(
        model_id=model_id, servers=[ServerState(host=one.host, name=one.name, state=one.state) for one in after]
    )
