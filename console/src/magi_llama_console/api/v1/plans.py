# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: make one, look at it by its hash, and do exactly that."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ...console import Console
from ...fleet import plans
from ...fleet.watch import read_document
from ...jobs.requests import LOOKING
from ...store.base import CONSOLE, ENDED, Job
from ..deps import ConsoleDep
from ..errors import errors
from ..problems import Problem, unknown
from ..security import Operator, Reader, address_of
from .jobs import JobAnswer, Names, document, fingerprint, requested_before, submit
from .shapes import Bytes

router = APIRouter(prefix="/api/v1/plans", tags=["plans"])
JOBS = 1000
Key = Annotated[str, Header(max_length=255)]


class PlanRequest(BaseModel):
    """The profile, by default each host's own, and names of hosts and groups, by default all."""

    model_config = ConfigDict(extra="forbid")

    profile: Annotated[str | None, Field(max_length=64)] = None
    limit: Names | Annotated[str, Field(max_length=10000)] = []


class ApplyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    allow_downtime: Annotated[bool, Field(description="Also where no server is left for a model meanwhile.")] = False


class Stages(BaseModel):
    """Bytes: what there is and is free, and what the servers need before, at most during, and after the change."""

    total: Bytes
    free: Bytes
    now: Bytes
    peak: Bytes
    after: Bytes


class GpuStages(Stages):
    index: int
    name: str


class PlanMemory(BaseModel):
    """gpu is all GPUs together; null without any."""

    ram: Stages
    gpu: Stages | None
    gpus: list[GpuStages]


class PlannedServer(BaseModel):
    name: str
    model_id: str
    action: Annotated[str, Field(description="keep, start, restart or stop.")]
    reason: str
    downtime_seconds: float | None
    argv_diff: Annotated[list[str], Field(description='Lines "- --flag value" and "+ --flag value".')]
    estimate: Annotated[dict[str, Any] | None, Field(description="Its memory in bytes, by part.")]


class HostPlan(BaseModel):
    summary: str
    downtime_seconds: float | None
    memory: PlanMemory
    warnings: list[str]
    error: str | None
    servers: list[PlannedServer]


class PlanHead(BaseModel):
    hash: str
    job: Annotated[str, Field(description="The id of the job that made it.")]
    profile: Annotated[str | None, Field(description="As requested; null for each host's own.")]
    limit: str | None
    made_at: str


class PlanDocument(PlanHead):
    as_of: Annotated[str, Field(description="When the hosts were as the plan found them, RFC 3339.")]
    source: Annotated[str, Field(description="The run of plan.yml.")]
    hosts: dict[str, HostPlan]


class PlanList(BaseModel):
    plans: list[PlanHead]


@router.post("", status_code=202, responses=errors(409, 422, 503))
async def make_plan(
    body: PlanRequest,
    request: Request,
    response: Response,
    console: ConsoleDep,
    who: Operator,
    idempotency_key: Key = "",
) -> JobAnswer:
    """Queue a run of plan.yml, which changes nothing. Its result document has the hash."""
    limit = [name.strip() for name in body.limit.split(",")] if isinstance(body.limit, str) else body.limit
    variables = {"profile": body.profile, "limit": [name for name in limit if name]}
    job = await submit(console, "plan", variables, by=who.name, key=idempotency_key, address=address_of(request))
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobAnswer(job=document(job))


@router.get("")
async def list_plans(console: ConsoleDep, _: Reader) -> PlanList:
    """The newest first, without those by which the console itself looks for drift."""
    return PlanList(plans=[head(job, known) for job, known in await made(console) if job.by != CONSOLE])


@router.get("/{hash}", responses=errors(404))
async def get_plan(hash: str, console: ConsoleDep, _: Reader) -> PlanDocument:
    """A plan by its hash, or by at least the first 16 digits of it."""
    job, found = await find(console, hash)
    described: dict[str, Any] = plans.described(found)
    return PlanDocument(
        **head(job, found["hash"]).model_dump(),
        as_of=job.started_at or job.created_at,
        source="status",
        hosts={name: HostPlan(**part) for name, part in described.items()},
    )


@router.post("/{hash}/apply", status_code=202, responses=errors(404, 409, 422, 503))
async def apply_plan(
    hash: str,
    request: Request,
    response: Response,
    console: ConsoleDep,
    who: Operator,
    body: ApplyRequest | None = None,
    idempotency_key: Key = "",
) -> JobAnswer:
    """Queue the run of site.yml that does this plan, and nothing if the host would get another one by then."""
    allow_downtime = bool(body and body.allow_downtime)
    asked = fingerprint("apply", {"hash": hash, "allow_downtime": allow_downtime})
    applied = await requested_before(console, who.name, idempotency_key, asked)
    if applied is None:
        job, found = await find(console, hash)
        await check_that_it_is_current(console, job)
        variables = {
            "profile": job.variables.get("profile"),
            "limit": job.variables.get("limit", ()),
            "allow_downtime": allow_downtime,
            "apply": found["hash"],
        }
        applied = await submit(
            console, "site", variables, by=who.name, key=idempotency_key, address=address_of(request), asked=asked
        )
    response.headers["Location"] = f"/api/v1/jobs/{applied.id}"
    return JobAnswer(job=document(applied))


async def check_that_it_is_current(console: Console, job: Job) -> None:
    """Raises Problem 409 where a later job has changed a host of the plan."""
    if changed := await later_change(console, job):
        raise Problem(
            409,
            f"Job {changed.id} ({changed.verb}) has run on {', '.join(sorted({*changed.hosts} & {*job.hosts}))} since "
            "this plan was made.",
            fix="Make a new plan with POST /api/v1/plans, look at it, and apply that.",
        )


def head(job: Job, hash: str) -> PlanHead:
    return PlanHead(
        hash=hash,
        job=job.id,
        profile=job.variables.get("profile"),
        limit=",".join(job.variables.get("limit", ())) or None,
        made_at=job.ended_at or job.created_at,
    )


async def made(console: Console) -> list[tuple[Job, str]]:
    """The jobs that made a plan with a hash, the newest first, each with the hash."""
    jobs = [job for job in await console.store.jobs(("finished",), JOBS) if job.verb == "plan"]
    paths = [result_of(console, job) for job in jobs]
    hashes = await asyncio.to_thread(lambda: [hash_of(path) for path in paths])
    return [(job, known) for job, known in zip(jobs, hashes, strict=True) if known]


def result_of(console: Console, job: Job) -> Path:
    return console.jobs.folder(job.id) / "result.json"


def hash_of(path: Path) -> str:
    """The hash in a result document; empty without one. It is read once: it may have megabytes."""
    try:
        return _hash_of(path, path.stat().st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=2 * JOBS)
def _hash_of(path: Path, _mtime_ns: int) -> str:
    return str((read_document(path) or {}).get("hash") or "")


async def find(console: Console, hash: str) -> tuple[Job, dict[str, Any]]:
    """The newest job that made this plan, and its result document. Raises Problem 404."""
    known = await made(console)
    for job, one in known:
        if one == hash or (len(hash) >= plans.MIN_DIGITS and one.startswith(hash)):
            found = await asyncio.to_thread(read_document, result_of(console, job))
            # Another request may have had the job forgotten meanwhile.
            if found:
                return job, found
    raise unknown("plan", hash, [one for _job, one in known[:20]])


async def later_change(console: Console, plan: Job) -> Job | None:
    """A job that has run on a host of the plan since that was made, and may have changed it."""
    for job in await console.store.jobs(ENDED, JOBS):
        if (job.started_at or "") <= (plan.started_at or ""):
            continue
        if (
            job.verb not in LOOKING
            and job.verb != "scan"
            and not job.is_check
            and not {*job.hosts}.isdisjoint(plan.hosts)
        ):
            return job
    return None
