# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events as they come: server-sent events, or JSON lines where the client accepts application/x-ndjson.

JSON lines have the place of each event in the store as sequence. With server-sent events a message without a name is
an event of a run, and its id that place. Messages without an id say what is now: job is a job that has changed, host
and server are one that has changed, in the shapes of /hosts and /servers, and end says that the job of the stream has
ended.

A stream that only has what there is (follow=false) is whole unless its last line or message is a problem: the store
then went away meanwhile. Another one just ends: the client comes again and resumes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ...console import Console
from ...store.base import ENDED, Event, Job, StoreUnavailable
from ...streams import TooManyStreams
from ..deps import ConsoleDep
from ..errors import errors
from ..fleet_changes import Change, FleetChanges
from ..problems import Problem, document_of, no_live_view
from ..security import Principal, Reader, still_valid
from .jobs import document, find

router = APIRouter(prefix="/api/v1", tags=["events"])
SSE, LINES = "text/event-stream", "application/x-ndjson"
HEARTBEAT_SECONDS = 15.0
# So often the fleet is compared with what was sent of it, which costs nothing as long as it is the same.
LOOK_SECONDS = 1.0
# Events that come together are sent together.
GATHER_SECONDS = 0.03
BATCH = 500
# As many of the newest jobs are looked at for changes.
JOBS = 50
RESPONSES = {
    200: {"content": {SSE: {"schema": {"type": "string"}}, LINES: {"schema": {"type": "string"}}}},
    429: errors(429)[429] | {"description": "Too many tokens were refused, or too many streams are open."},
}
# What a store can have as a place: 64 bits.
LAST = 1 << 62
Read = tuple[int, Job | None, bool, list[Event]]


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse, responses=RESPONSES)  # type: ignore[arg-type]
async def of_job(
    job_id: str,
    request: Request,
    console: ConsoleDep,
    who: Reader,
    after: Annotated[int, Query(ge=0, le=LAST)] = 0,
    follow: bool = True,
    last_event_id: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """A job's events from the beginning, or after Last-Event-ID, until it has ended."""
    job = await find(console, job_id)
    place = _place(last_event_id, after, await console.store.last_sequence())
    return await _answer(who, Stream(console, request, place, job, follow))


@router.get("/events", response_class=StreamingResponse, responses=RESPONSES)  # type: ignore[arg-type]
async def of_all(
    request: Request,
    console: ConsoleDep,
    who: Reader,
    after: Annotated[int | None, Query(ge=0, le=LAST)] = None,
    follow: bool = True,
    last_event_id: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """All runs' events: from now on, or after Last-Event-ID or after."""
    newest = await console.store.last_sequence()
    place = _place(last_event_id, newest if after is None else after, newest)
    return await _answer(who, Stream(console, request, place, None, follow))


def _place(last_event_id: str, start: int, newest: int) -> int:
    """Where a stream begins. A place above the newest one is of a store that is gone: nothing would come."""
    if not last_event_id:
        return min(start, newest)
    if not last_event_id.isdecimal() or len(last_event_id) > 18:
        raise Problem(
            400, "Last-Event-ID is not the id of an event.", fix="Leave the header out, or use a message's id."
        )
    return min(int(last_event_id), newest)


class Stream:
    """One answer: the events after a place in the store, of one job or of all."""

    def __init__(self, console: Console, request: Request, place: int, job: Job | None, follow: bool) -> None:
        self.console, self.request, self._place = console, request, place
        self._job, self._follow = job, follow
        self._seen: dict[str, Job] | None = None
        self._is_live = True
        self._first: Read | None = None
        self._changes = None if job else FleetChanges(console)

    async def begin(self) -> None:
        """Read the first events, so that a store that is away is a problem of the request. Raises StoreUnavailable."""
        self._first = await self._read()

    async def _read(self) -> Read:
        """The newest place in the store, the job, whether it has ended, and the next events."""
        store, job_id = self.console.store, self._job.id if self._job else None
        # Events of other runs do not end the wait for those of this one at once, and those that come while these
        # are sent do.
        newest = await store.last_sequence()
        # Looked at before its events: what it has sent until its end is in the store by then.
        job = await store.job(job_id) if job_id else None
        is_behind = job_id is not None and self.console.jobs.is_behind(job_id)
        has_ended = job_id is not None and (job is None or job.state in ENDED) and not is_behind
        return newest, job, has_ended, await store.events(self._place, job_id, BATCH)

    async def messages(self) -> AsyncIterator[Event | Job | Change | None]:
        """Events, jobs, hosts and servers that have changed, and None for a heartbeat.

        It ends with the job, or when the token is void.
        """
        store, version = self.console.store, -1
        job_id = self._job.id if self._job else None
        checked = time.monotonic()
        # So that the client knows at once that it is connected.
        yield None
        while True:
            newest, job, has_ended, found = self._first or await self._read()
            self._first = None
            for event in found:
                yield event
                self._place = event.sequence
            if version != self.console.jobs.version:
                version = self.console.jobs.version
                for changed in await self._changed_jobs(job):
                    yield changed
            if len(found) == BATCH:
                continue
            for change in await self._changes.take() if self._changes else ():
                yield change
            if has_ended or not self._follow:
                return
            # While these were sent, the job may have ended: no later change would say so.
            if (version == self.console.jobs.version) and (job_id is None or await store.job(job_id) == job):
                await store.wait(max(self._place, newest), LOOK_SECONDS if self._changes else HEARTBEAT_SECONDS)
            if time.monotonic() - checked > HEARTBEAT_SECONDS:
                checked = time.monotonic()
                yield None
                if not await still_valid(self.request, self.console):
                    return
            await asyncio.sleep(GATHER_SECONDS)

    async def _while_live(self) -> AsyncIterator[Event | Job | Change | None]:
        """The messages, until the store is away."""
        try:
            async for message in self.messages():
                yield message
        except StoreUnavailable:
            self._is_live = False

    async def _changed_jobs(self, job: Job | None) -> list[Job]:
        jobs = [job] if job else await self.console.store.jobs(limit=JOBS)
        # The first look at all jobs only says what there is.
        is_first = self._seen is None and self._job is None
        changed = [one for one in jobs if (self._seen or {}).get(one.id) != one]
        self._seen = {one.id: one for one in jobs}
        return [] if is_first else changed

    async def as_sse(self) -> AsyncIterator[str]:
        async for message in self._while_live():
            if message is None:
                yield ": \n\n"
            elif isinstance(message, Job):
                yield f"event: job\ndata: {document(message).model_dump_json()}\n\n"
            elif isinstance(message, Change):
                yield f"event: {message.kind}\ndata: {_as_text(message.document)}\n\n"
            else:
                yield f"id: {message.sequence}\ndata: {_as_text(message.event)}\n\n"
        if self._job and self._follow and self._is_live:
            yield "event: end\ndata: {}\n\n"
        if self._is_cut_off:
            yield f"event: problem\ndata: {self._problem()}\n\n"

    async def as_lines(self) -> AsyncIterator[str]:
        async for message in self._while_live():
            # Empty lines keep the connection open.
            if message is None:
                yield "\n"
            elif isinstance(message, Event):
                yield f"{_as_text({'sequence': message.sequence, **message.event})}\n"
        if self._is_cut_off:
            yield f"{self._problem()}\n"

    @property
    def _is_cut_off(self) -> bool:
        return not self._follow and not self._is_live

    def _problem(self) -> str:
        return document_of(no_live_view(), self.request).model_dump_json()


def _as_text(event: Mapping[str, Any]) -> str:
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False)


class CountedResponse(StreamingResponse):
    """A stream that counts as one of its principal's until it has ended, also where it never began."""

    def __init__(self, who: Principal, console: Console, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._who, self._console = who, console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Problem 429 before anything is sent."""
        try:
            with self._console.streams.one_of(self._who.name):
                await super().__call__(scope, receive, send)
        except TooManyStreams as error:
            raise Problem(
                429, str(error), fix="Close another one, such as a tab of the page.", headers={"Retry-After": "15"}
            ) from error


async def _answer(who: Principal, stream: Stream) -> StreamingResponse:
    await stream.begin()
    if LINES in stream.request.headers.get("accept", ""):
        return CountedResponse(who, stream.console, stream.as_lines(), media_type=LINES)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return CountedResponse(who, stream.console, stream.as_sse(), media_type=SSE, headers=headers)
