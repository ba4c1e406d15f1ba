# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records that the console keeps, and the interface of a store.

Times are RFC 3339 in UTC with milliseconds: they sort as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

# queued and running become one of the others. lost: its process ended without a return code, as in a power cut.
JOB_STATES = ("queued", "running", "finished", "failed", "cancelled", "lost")
ENDED = ("finished", "failed", "cancelled", "lost")
# By whom the jobs are that no user has requested: not a name that a token can have. So many of them are kept.
CONSOLE = "(console)"
CONSOLE_JOBS_KEPT = 20


def now() -> str:
    """The time as in events: 2026-11-27T18:00:00.123Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a playbook. Its id is the run id of its events."""

    id: str
    verb: str
    # As requested and validated: profile, servers, limit, check, allow_downtime, apply.
    variables: Mapping[str, Any]
    # The hosts that it may change; no other job runs on them meanwhile.
    hosts: tuple[str, ...]
    # The name of the token or user that requested it.
    by: str
    created_at: str
    state: str = "queued"
    # {"host": …, "job": …} while queued, else None.
    waits_for: Mapping[str, str] | None = None
    rc: int | None = None
    started_at: str | None = None
    ended_at: str | None = None
    # The process: pid, and its start time in clock ticks since boot.
    pid: int | None = None
    pid_started: int | None = None
    boot_id: str | None = None
    # When the cancellation was requested.
    cancelled_at: str | None = None

    @property
    def is_check(self) -> bool:
        return bool(self.variables.get("check"))


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run, with its place in the order in which this store received all events."""

    sequence: int
    # The job that it belongs to, or None for runs that the console did not start.
    job: str | None
    # As docs/schemas/event.schema.json says.
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in browser. The cookie itself is not kept, only its sha256."""

    digest: str
    name: str
    role: str
    created_at: str
    expires_at: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what. Entries are only added."""

    at: str
    by: str
    # For example job.create, job.cancel, session.create, key.delete.
    action: str
    # What was acted upon: a job's id, a key's name.
    target: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    address: str = ""


@dataclass(frozen=True, slots=True)
class CachedStatus:
    """The last known document about a host: kind is status, plan, registry, health, …"""

    host: str
    kind: str
    as_of: str
    # events, sweep, gateway, status
    source: str
    document: Mapping[str, Any]


class KeyReused(Exception):
    """An Idempotency-Key came with another request than before."""


class StoreUnavailable(Exception):
    """The Redis of the store does not answer, or refuses. Its text says which one and why; it has no password."""


class Store(Protocol):
    """All methods may be called from the event loop: none takes longer than a local write or one request to Redis.

    Those about events, sessions, keys of requests and cached status raise StoreUnavailable.
    """

    async def close(self) -> None: ...

    async def add_job(self, job: Job, *, key: str = "", fingerprint: str = "") -> Job:
        """Keep a new job. With a key that was used before, return the job of that time instead.

        Raises KeyReused if the request of that time had another fingerprint.
        """

    async def job_of_key(self, key: str, fingerprint: str) -> Job | None:
        """The job that a key was used for; None where it was not. Raises KeyReused as add_job does."""

    async def save_job(self, job: Job) -> None:
        """Replace a job."""

    async def job(self, job_id: str) -> Job | None: ...

    async def jobs(self, states: Sequence[str] = (), limit: int = 100) -> list[Job]:
        """The newest jobs first, of all states or of these."""

    async def prune(self, keep: int) -> list[str]:
        """Forget all but the newest jobs that have ended, with their events; the ids of those that are forgotten.

        The jobs that the console itself has requested are counted apart: CONSOLE_JOBS_KEPT.
        """

    async def add_events(self, job: str | None, events: Sequence[Mapping[str, Any]], offset: int | None = None) -> None:
        """Keep events, and with them in one transaction how far the job's file has been read (bytes)."""

    async def offset(self, job: str) -> int:
        """How far the job's file of events has been read, in bytes."""

    async def events(self, after: int = 0, job: str | None = None, limit: int = 500) -> list[Event]:
        """Events whose sequence is above after, oldest first, of all runs or of one job."""

    async def newest_events(self, host: str, types: Sequence[str], limit: int) -> list[Event]:
        """The newest events of a host that are of these types, oldest first."""

    async def newest_events_of_job(self, job: str, types: Sequence[str], limit: int) -> list[Event]:
        """The newest events of a job that are of these types, oldest first."""

    async def last_sequence(self) -> int:
        """The sequence of the newest event; 0 if there is none."""

    async def wait(self, after: int, seconds: float) -> bool:
        """Wait until there is an event above after, or a job has changed. False if neither was in that time."""

    async def add_session(self, session: Session) -> None: ...

    async def session(self, digest: str) -> Session | None:
        """The session, unless it has expired."""

    async def delete_session(self, digest: str) -> None: ...

    async def delete_sessions_of(self, name: str) -> None:
        """End all sessions of a token's name."""

    async def add_audit(self, entry: AuditEntry) -> None: ...

    async def audit(self, limit: int = 100) -> list[AuditEntry]:
        """The newest entries first."""

    async def put_status(self, statuses: Sequence[CachedStatus]) -> None:
        """Keep documents; one of the same host and kind is replaced unless it is newer."""

    async def statuses(self, kind: str | None = None) -> list[CachedStatus]: ...
