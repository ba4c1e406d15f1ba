# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs: request one, look at it, cancel it, read its output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from ...console import Console
from ...fleet import received
from ...fleet.inventory import InventoryError
from ...fleet.profiles import ProfileFileError
from ...jobs.requests import RequestRefused, given_of, validate
from ...store.base import Job, KeyReused, StoreUnavailable
from ..audit import record
from ..deps import ConsoleDep
from ..problems import Problem, nearest_names, unknown
from ..security import Operator, Reader, address_of

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])
Names = Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=1000)]
# The types of events after which a host waits for a lock, or does not any more; so many are looked at.
LOCK_TYPES = ("lock_waited", "task_failed", "unreachable")
MAX_LOCK_EVENTS = 1000
State = Literal["queued", "running", "finished", "failed", "cancelled", "lost"]


class JobRequest(BaseModel):
    """A verb with the variables that it takes; limit has names of hosts and groups, servers also ["all"].

    output_log has names of servers, or ["all"], of which a status also reads the last lines of the log.
    """

    model_config = ConfigDict(extra="forbid")

    verb: Literal["site", "plan", "start", "stop", "restart", "status", "verify", "rollout", "rollback", "scan"]
    profile: Annotated[str | None, Field(max_length=64)] = None
    servers: Names = []
    output_log: Names = []
    limit: Names = []
    check: bool = False
    allow_downtime: bool = False


class WaitsFor(BaseModel):
    """The host is empty where only the number of jobs at once keeps the job."""

    host: str
    job: str


class WaitsForLock(BaseModel):
    """The run lock of a host, which a run that is not a job of this console has, such as another controller's."""

    host: str
    holder: str
    since: str


class JobDocument(BaseModel):
    """A job. result is the result document of its playbook, once it has ended and if the playbook has one.

    For the role read it has no logs of servers (log).
    waits_for_locks are the locks of other runs that it waits for now; it is empty in lists.
    """

    id: str
    verb: str
    variables: dict[str, Any]
    state: State
    waits_for: WaitsFor | None
    hosts: list[str]
    rc: int | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    by: str
    check: bool
    waits_for_locks: list[WaitsForLock] = []
    result: dict[str, Any] | None = None


class JobAnswer(BaseModel):
    job: JobDocument


class JobList(BaseModel):
    jobs: list[JobDocument]


def document(job: Job, result: dict[str, Any] | None = None, locks: Sequence[WaitsForLock] = ()) -> JobDocument:
    """A job as it is answered."""
    waits = None if job.waits_for is None else WaitsFor(**job.waits_for)
    return JobDocument(
        id=job.id,
        verb=job.verb,
        variables=dict(job.variables),
        state=job.state,  # type: ignore[arg-type]
        waits_for=waits,
        hosts=list(job.hosts),
        rc=job.rc,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        by=job.by,
        check=job.is_check,
        waits_for_locks=list(locks),
        result=result,
    )


async def find(console: Console, job_id: str) -> Job:
    """A job by its id. Raises Problem 404."""
    job = await console.store.job(job_id)
    if job is None:
        raise unknown("job", job_id, [one.id for one in await console.store.jobs(limit=20)])
    return job


def fingerprint(verb: str, variables: dict[str, Any]) -> str:
    """Of a request, to compare it with another one of the same Idempotency-Key."""
    return hashlib.sha256(json.dumps([verb, given_of(variables)], sort_keys=True).encode()).hexdigest()


async def requested_before(console: Console, by: str, key: str, asked: str) -> Job | None:
    """The job of a request with this key. Raises Problem 409 if that was another request."""
    try:
        return await console.store.job_of_key(f"{by}:{key}", asked) if key else None
    except KeyReused as error:
        raise reused() from error


def reused() -> Problem:
    return Problem(409, "This Idempotency-Key was used for another request.", fix="Use a new key for a new request.")


async def submit(
    console: Console,
    verb: str,
    variables: dict[str, Any],
    *,
    by: str,
    key: str = "",
    address: str = "",
    asked: str = "",
) -> Job:
    """Queue a job for who may do it, and write that to the audit log. Raises Problem 422 or 409.

    asked is the fingerprint of the request with this key; by default that of its verb and variables.
    """
    asked = asked or fingerprint(verb, variables)
    # First: a repeated request has the answer of the first one, also after later changes.
    if found := await requested_before(console, by, key, asked):
        return found
    try:
        request = validate(verb, variables, await console.known.read())
    except (InventoryError, ProfileFileError) as error:
        raise Problem(503, str(error), fix="Repair the file: the next request reads it again.") from error
    except RequestRefused as error:
        near = nearest_names(error.name, error.names)
        fix = error.fix or (f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(error.names)}.")
        raise Problem(422, error.detail, fix=fix, nearest=near) from error
    try:
        job, is_new = await console.jobs.submit(request, by=by, key=f"{by}:{key}" if key else "", fingerprint=asked)
    except KeyReused as error:
        raise reused() from error
    if is_new:
        await record(console, by, "job.create", job.id, {"verb": verb, **request.variables}, address)
    return job


@router.post("", status_code=202, responses={409: {}, 422: {}})
async def create(
    body: JobRequest,
    request: Request,
    response: Response,
    console: ConsoleDep,
    who: Operator,
    idempotency_key: Annotated[str, Header(max_length=255)] = "",
) -> JobAnswer:
    """Queue a run of a playbook. The same Idempotency-Key answers with the same job."""
    variables = body.model_dump(exclude={"verb"})
    job = await submit(console, body.verb, variables, by=who.name, key=idempotency_key, address=address_of(request))
    response.headers["Location"] = f"{router.prefix}/{job.id}"
    return JobAnswer(job=document(job))


@router.get("")
async def list_jobs(
    console: ConsoleDep,
    _: Reader,
    state: Annotated[list[State] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> JobList:
    """The newest first, without results."""
    return JobList(jobs=[document(job) for job in await console.store.jobs(state or (), limit)])


@router.get("/{job_id}")
async def get(job_id: str, console: ConsoleDep, who: Reader) -> JobAnswer:
    job = await find(console, job_id)
    result = read_result(console.jobs.folder(job.id))
    shown = result if who.is_operator else without_logs(result)
    return JobAnswer(job=document(job, shown, await locks_waited_for(console, job)))


def without_logs(found: Any) -> Any:
    """A result document without the logs of servers; prompts can be in them."""
    if isinstance(found, list):
        return [without_logs(one) for one in found]
    if not isinstance(found, dict):
        return found
    # Not a host of that name.
    is_log = "name" in found
    return {key: without_logs(one) for key, one in found.items() if not (is_log and key == "log")}


async def locks_waited_for(console: Console, job: Job) -> list[WaitsForLock]:
    """The locks that its run says it waits for; none without a live view, where that is not known."""
    if job.state != "running":
        return []
    try:
        newest = await console.store.newest_events_of_job(job.id, LOCK_TYPES, MAX_LOCK_EVENTS)
    except StoreUnavailable:
        return []
    waits: dict[str, WaitsForLock] = {}
    for event in (one.event for one in newest):
        host, data = received.text(event.get("host")), received.mapping(event.get("data"))
        if host is None:
            continue
        waits.pop(host, None)
        holder, since = received.text(data.get("holder")), received.text(data.get("since"))
        if event["type"] == "lock_waited" and data.get("has_lock") is False and holder and since:
            waits[host] = WaitsForLock(host=host, holder=holder, since=since)
    return list(waits.values())


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result document that the playbook has written; None as long as there is none."""
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result


@router.post("/{job_id}/cancel", status_code=202)
async def cancel(job_id: str, request: Request, console: ConsoleDep, who: Operator) -> JobAnswer:
    """End a job: INT, 20 s later TERM, 5 s later KILL. One that has ended is answered as it is."""
    job = await find(console, job_id)
    cancelled = await console.jobs.cancel(job)
    if cancelled is not job:
        await record(console, who.name, "job.cancel", job.id, {"verb": job.verb}, address_of(request))
    return JobAnswer(job=document(cancelled))


@router.get("/{job_id}/output", response_class=PlainTextResponse)
async def output(job_id: str, console: ConsoleDep, _: Reader) -> Response:
    """What ansible-playbook has printed so far."""
    job = await find(console, job_id)
    path = console.jobs.folder(job.id) / "output.log"
    if not path.exists():
        return PlainTextResponse("")
    return FileResponse(path, media_type="text/plain; charset=utf-8")
