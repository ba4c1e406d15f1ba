# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of all registries, and where one more server of each would fit."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from ...fleet import capacity as fits
from ...fleet import models
from ..deps import ConsoleDep
from ..errors import errors
from ..fleet_answers import age, hosts_of, models_age
from ..security import Reader
from . import shapes

router = APIRouter(prefix="/api/v1", tags=["fleet"])
Name = Annotated[str | None, Query(max_length=253)]


@router.get("/models", responses=errors(404, 503))
async def list_models(console: ConsoleDep, _: Reader, host: Name = None) -> shapes.Models:
    """Every model by id with the hosts that have it, and the files that a scan has rejected."""
    hosts = await hosts_of(console, host)
    manifest = await asyncio.to_thread(models.manifest_of, console.fleet.inventory, console.settings.inventory)
    return shapes.Models(
        models=[shapes.Model(**one) for one in models.merged(hosts, manifest)],
        rejected=[shapes.Rejected(**one) for one in models.rejected(hosts)],
        **models_age(hosts),
    )


@router.get("/capacity", responses=errors(404, 503))
async def capacity(console: ConsoleDep, _: Reader, host: Name = None) -> shapes.Capacity:
    """What fits where: each host's free memory against what one more server of each model needs."""
    hosts = await hosts_of(console, host)
    found = [shapes.HostCapacity(**one) for one in fits.capacity(hosts)]
    return shapes.Capacity(hosts=found, **age(hosts))
