# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that run a job and wait for it, as long as a server may take to start (?wait=seconds).

When the job takes longer the answer is 202, with what is known by then. X-Magi-Job has the job.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from ..console import Console
from ..store.base import ENDED, Job
from .deps import ConsoleDep
from .errors import errors
from .fleet_answers import age
from .problems import Problem
from .security import Operator, Principal, address_of
from .v1.jobs import submit

# The start-up time of a server: the environment's, as for the playbooks, or their default.
START_UP_SECONDS = 120
MAX_WAIT_SECONDS = 3600
CHANGES = errors(404, 409, 422, 502, 503)
Wait = Annotated[float | None, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds; by default the start-up time.")]


@dataclass(frozen=True)
class Change:
    """What all requests that change something have."""

    request: Request
    response: Response
    console: Console
    who: Principal
    wait: float | None

    async def run(self, verb: str, variables: dict[str, Any]) -> Run:
        """Queue a job and wait for it. Raises Problem where it is refused."""
        run = await Run.make(self.console, self.who, self.request, verb, variables)
        await run.wait_for(self.response, self.wait)
        return run


async def change(request: Request, response: Response, console: ConsoleDep, who: Operator, wait: Wait = None) -> Change:
    return Change(request, response, console, who, wait)


ChangeDep = Annotated[Change, Depends(change)]


def say_age(response: Response, found: dict[str, Any]) -> None:
    response.headers["X-Magi-As-Of"] = found["as_of"] or ""
    response.headers["X-Magi-Source"] = found["source"]


class Run:
    """A job that such a request has queued."""

    def __init__(self, console: Console, job: Job) -> None:
        self._console, self.job = console, job

    @classmethod
    async def make(
        cls, console: Console, who: Principal, request: Request, verb: str, variables: dict[str, Any]
    ) -> Run:
        key = request.headers.get("idempotency-key", "")[:255]
        return cls(console, await submit(console, verb, variables, by=who.name, key=key, address=address_of(request)))

    @property
    def has_failed(self) -> bool:
        return self.job.state in ENDED and self.job.state != "finished"

    async def wait_for(self, response: Response, seconds: float | None) -> None:
        """Wait for its end; 202 where it has not ended by then."""
        store = self._console.store
        deadline = time.monotonic() + (start_up_seconds() if seconds is None else seconds)
        while self.job.state not in ENDED and (left := deadline - time.monotonic()) > 0:
            await store.wait(await store.last_sequence(), min(left, 1))
            self.job = await store.job(self.job.id) or self.job
        await self._console.fleet.catch_up()
        response.headers["X-Magi-Job"] = self.job.id
        hosts = [self._console.fleet.host(name) for name in self.job.hosts]
        say_age(response, age(hosts))
        if self.job.state not in ENDED:
            response.status_code = 202
            response.headers["Location"] = f"/api/v1/jobs/{self.job.id}"

    async def problem(self) -> Problem:
        """Why it failed, by the first error that the run has reported."""
        first: dict[str, Any] = {}
        place = 0
        while not first and (events := await self._console.store.events(place, self.job.id)):
            place = events[-1].sequence
            kinds = ("task_failed", "unreachable")
            first = next((dict(one.event["data"]) for one in events if one.event["type"] in kinds), {})
        text = first.get("msg") or f"The run ended with the status {self.job.rc}."
        fix = first.get("fix") or f"Look at /api/v1/jobs/{self.job.id}/output."
        return Problem(
            502, f"Job {self.job.id} ({self.job.verb}): {text}", fix=fix, headers={"X-Magi-Job": self.job.id}
        )


def start_up_seconds() -> float:
    given = os.environ.get("MODEL_MAX_STARTUP_TIME", "")
    return min(float(given), MAX_WAIT_SECONDS) if given.isdecimal() else START_UP_SECONDS
