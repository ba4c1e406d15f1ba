# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which jobs of this console have hosts. Those of others are not seen: a run says whom it has waited for afterwards."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ..deps import ConsoleDep
from ..security import Reader

router = APIRouter(prefix="/api/v1", tags=["jobs"])


class HostLock(BaseModel):
    host: str
    holder: Annotated[str, Field(description="The user and playbook.")]
    since: Annotated[str | None, Field(description="When it began, RFC 3339.")]
    job: Annotated[str, Field(description="Its id.")]


class Locks(BaseModel):
    locks: list[HostLock]


@router.get("/locks")
async def list_locks(console: ConsoleDep, _: Reader) -> Locks:
    """One entry for each host that a job has now."""
    return Locks(
        locks=[
            HostLock(host=host, holder=f"{job.by}, {job.verb}", since=job.started_at, job=job.id)
            for job in await console.store.jobs(("running",), 1000)
            for host in job.hosts
        ]
    )
