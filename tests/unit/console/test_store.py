# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: jobs, events, sessions, the audit log and cached status, over a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from magi_llama_console.store.base import CONSOLE, CONSOLE_JOBS_KEPT, CachedStatus, Job, KeyReused, Session
from magi_llama_console.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "console.db")
    yield store
    asyncio.run(store.close())


def job(name: str, **fields: object) -> Job:
    return replace(
        Job(id=name, verb="site", variables={"check": True}, hosts=("a",), by="me", created_at="t"), **fields
    )


def test_job_is_the_same_after_a_restart(store: SqliteStore, tmp_path: Path) -> None:
    kept = job("one", state="running", pid=1, waits_for={"host": "a", "job": "zero"})
    asyncio.run(store.add_job(kept))
    again = SqliteStore(tmp_path / "console.db")
    assert asyncio.run(again.job("one")) == kept
    assert asyncio.run(again.jobs(("queued",))) == []
    asyncio.run(again.close())


def test_key_names_the_job_of_its_first_use(store: SqliteStore) -> None:
    first = asyncio.run(store.add_job(job("one"), key="k", fingerprint="f"))
    assert asyncio.run(store.add_job(job("two"), key="k", fingerprint="f")) == first
    with pytest.raises(KeyReused):
        asyncio.run(store.add_job(job("three"), key="k", fingerprint="g"))
    assert [one.id for one in asyncio.run(store.jobs())] == ["one"]


def test_old_jobs_are_forgotten_with_their_events_but_not_those_that_run(store: SqliteStore) -> None:
    async def fill() -> list[str]:
        for number in range(5):
            state = "running" if number == 0 else "finished"
            await store.add_job(job(f"{number}", state=state))
            await store.add_events(f"{number}", [{"n": number}], 10)
        return await store.prune(2)

    assert asyncio.run(fill()) == ["2", "1"]
    assert [one.id for one in asyncio.run(store.jobs())] == ["4", "3", "0"]
    assert [event.job for event in asyncio.run(store.events())] == ["0", "3", "4"]
    # Numbers are not used again: a client may have seen them.
    asyncio.run(store.add_events(None, [{}]))
    assert asyncio.run(store.last_sequence()) == 6


def test_jobs_of_the_console_itself_are_counted_apart(store: SqliteStore) -> None:
    async def fill() -> list[str]:
        await store.add_job(job("mine", state="finished"))
        for number in range(CONSOLE_JOBS_KEPT + 2):
            await store.add_job(replace(job(f"{number}", state="finished"), by=CONSOLE))
        return await store.prune(1)

    assert asyncio.run(fill()) == ["1", "0"]
    assert "mine" in [one.id for one in asyncio.run(store.jobs())]


def test_waiting_ends_with_the_next_event(store: SqliteStore) -> None:
    async def both() -> tuple[bool, bool]:
        waiting = asyncio.create_task(store.wait(0, 10))
        await asyncio.sleep(0)
        await store.add_events(None, [{}])
        return await waiting, await store.wait(1, 0.01)

    assert asyncio.run(both()) == (True, False)


def test_session_that_has_expired_is_not_there(store: SqliteStore) -> None:
    asyncio.run(store.add_session(Session("old", "me", "read", "2026-01-01", "2026-01-02T00:00:00.000Z")))
    asyncio.run(store.add_session(Session("new", "me", "read", "2026-01-01", "9999-01-01T00:00:00.000Z")))
    assert asyncio.run(store.session("old")) is None
    assert asyncio.run(store.session("new")) is not None
    asyncio.run(store.delete_sessions_of("me"))
    assert asyncio.run(store.session("new")) is None


def test_older_status_does_not_replace_a_newer_one(store: SqliteStore) -> None:
    newer, older = (CachedStatus("a", "status", as_of, "events", {"at": as_of}) for as_of in ("2", "1"))
    asyncio.run(store.put_status([newer]))
    asyncio.run(store.put_status([older]))
    assert asyncio.run(store.statuses("status")) == [newer]


def test_newest_events_of_a_host_are_found_by_their_type(store: SqliteStore) -> None:
    def event(host: str | None, kind: str, number: int) -> dict[str, object]:
        return {"type": kind, "run": "r", "host": host, "data": {"number": number, "names": {"host": "a"}}}

    events = [event("a", "line", 1), event("b", "line", 2), event("a", "plan", 3), event(None, "line", 4)]
    events += [event("a", "line", 5), {**event("a", "line", 6), "data": float("nan")}, event("a", "warning", 7)]
    asyncio.run(store.add_events("j", events))
    found = asyncio.run(store.newest_events("a", ("line", "warning"), 2))
    assert [one.event["data"]["number"] for one in found] == [5, 7]
