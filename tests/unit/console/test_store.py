# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both stores: jobs, events, sessions, the audit log and cached status, over a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from magi_llama_console.store.base import CONSOLE, CONSOLE_JOBS_KEPT, AuditEntry, CachedStatus, Job, KeyReused, Session
from magi_llama_console.store.redis import RedisStore
from magi_llama_console.store.sqlite import SqliteStore
from support.running_redis import needs_redis, running_redis

PASSWORD = "s3cret"
# What role redis allows a console.
ACCESS = ("console", "on", f">{PASSWORD}", "~magi:*", "&magi:*", "+@all", "-@admin", "-@dangerous")
Run = Callable[[Coroutine[Any, Any, Any]], Any]
Open = Callable[[], SqliteStore]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("redis")
    with running_redis(folder, "--user", *ACCESS) as server:
        yield server.url.replace("unix://", "unix://console@")


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a coroutine; all of a test in one event loop, as in the console."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, run: Run) -> Iterator[Open]:
    """Opens the store; once more is a restart of the console."""
    opened: list[SqliteStore] = []
    password = tmp_path / "password"
    password.write_text(f"{PASSWORD}\n")

    def open_it() -> SqliteStore:
        path = tmp_path / "console.db"
        is_redis = request.param == "redis"
        url = request.getfixturevalue("redis_url") if is_redis else ""
        opened.append(RedisStore(path, url, password) if is_redis else SqliteStore(path))
        return opened[-1]

    yield open_it
    for store in opened:
        if isinstance(store, RedisStore):
            run(forget_everything(store))
        run(store.close())


async def forget_everything(store: RedisStore) -> None:
    if keys := [key async for key in store._redis.scan_iter()]:
        assert all(key.startswith(b"magi:") for key in keys)
        await store._redis.delete(*keys)


@pytest.fixture
def store(open_store: Open) -> SqliteStore:
    return open_store()


def job(name: str, **fields: object) -> Job:
    return replace(
        Job(id=name, verb="site", variables={"check": True}, hosts=("a",), by="me", created_at="t"), **fields
    )


def event(number: int, **fields: object) -> dict[str, Any]:
    return {"run": "r", "type": "line", "at": "t", "seq": number, "data": {"text": "ü"}, **fields}


def test_job_is_the_same_after_a_restart(open_store: Open, run: Run) -> None:
    kept = job("one", state="running", pid=1, waits_for={"host": "a", "job": "zero"})
    run(open_store().add_job(kept))
    again = open_store()
    assert run(again.job("one")) == kept
    assert run(again.jobs(("queued",))) == []


def test_key_names_the_job_of_its_first_use(store: SqliteStore, run: Run) -> None:
    first = run(store.add_job(job("one"), key="k", fingerprint="f"))
    assert run(store.add_job(job("two"), key="k", fingerprint="f")) == first
    with pytest.raises(KeyReused):
        run(store.add_job(job("three"), key="k", fingerprint="g"))
    assert [one.id for one in run(store.jobs())] == ["one"]


def test_key_of_a_request_that_was_cut_off_before_its_job_was_kept_can_be_used(
    store: SqliteStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_transaction", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(store.add_job(job("one"), key="k", fingerprint="f"))
    assert run(store.add_job(job("two"), key="k", fingerprint="f")).id == "two"
    assert run(store.add_job(job("three"), key="k", fingerprint="f")).id == "two"
    run(store.save_job(job("two", state="finished")))
    assert run(store.prune(0)) == ["two"]
    # Forgotten with its job.
    assert run(store.add_job(job("four"), key="k", fingerprint="g")).id == "four"


def test_old_jobs_are_forgotten_with_their_events_but_not_those_that_run(store: SqliteStore, run: Run) -> None:
    async def fill() -> list[str]:
        for number in range(5):
            state = "running" if number == 0 else "finished"
            await store.add_job(job(f"{number}", state=state))
            await store.add_events(f"{number}", [event(number)], 10)
        return await store.prune(2)

    assert run(fill()) == ["2", "1"]
    assert [one.id for one in run(store.jobs())] == ["4", "3", "0"]
    assert [event.job for event in run(store.events())] == ["0", "3", "4"]
    assert run(store.offset("1")) == 0
    # Numbers are not used again: a client may have seen them.
    newest = run(store.last_sequence())
    run(store.prune(0))
    run(store.add_events(None, [event(7)]))
    assert run(store.last_sequence()) > newest


def test_jobs_of_the_console_itself_are_counted_apart(store: SqliteStore, run: Run) -> None:
    async def fill() -> list[str]:
        await store.add_job(job("mine", state="finished"))
        for number in range(CONSOLE_JOBS_KEPT + 2):
            await store.add_job(replace(job(f"{number}", state="finished"), by=CONSOLE))
        return await store.prune(1)

    assert run(fill()) == ["1", "0"]
    assert "mine" in [one.id for one in run(store.jobs())]


def test_waiting_ends_with_the_next_event(store: SqliteStore, run: Run) -> None:
    async def both() -> tuple[bool, bool]:
        waiting = asyncio.create_task(store.wait(0, 10))
        await asyncio.sleep(0)
        await store.add_events(None, [event(0)])
        return await waiting, await store.wait(await store.last_sequence(), 0.01)

    assert run(both()) == (True, False)


def test_session_that_has_expired_is_not_there(store: SqliteStore, run: Run) -> None:
    run(store.add_session(Session("old", "me", "read", "2026-01-01", "2026-01-02T00:00:00.000Z")))
    run(store.add_session(Session("new", "me", "read", "2026-01-01", "9999-01-01T00:00:00.000Z")))
    assert run(store.session("old")) is None
    assert run(store.session("new")) is not None
    run(store.delete_sessions_of("me"))
    assert run(store.session("new")) is None


def test_older_status_does_not_replace_a_newer_one(store: SqliteStore, run: Run) -> None:
    newer, older = (CachedStatus("a", "status", as_of, "events", {"at": as_of}) for as_of in ("2", "1"))
    run(store.put_status([newer]))
    run(store.put_status([older]))
    assert run(store.statuses("status")) == [newer]


def test_events_that_are_read_twice_from_a_file_are_kept_once(open_store: Open, run: Run) -> None:
    async def read_again() -> list[int]:
        store = open_store()
        await store.add_events("one", [event(1), event(2)], 20)
        # The console was cut off before it had the answer, and reads from the place that the store has.
        again = open_store()
        assert await again.offset("one") == 20
        await again.add_events("one", [event(3)], 30)
        return [found.event["seq"] for found in await again.events(job="one")]

    assert run(read_again()) == [1, 2, 3]


def test_events_are_read_on_from_each_place_in_parts(store: SqliteStore, run: Run) -> None:
    async def read() -> list[tuple[str | None, int]]:
        await store.add_events("one", [event(number) for number in range(7)], 1)
        await store.add_events(None, [event(7)])
        found, after = [], 0
        while part := await store.events(after, limit=3):
            found += [(one.job, one.event["seq"]) for one in part]
            after = part[-1].sequence
        assert after == await store.last_sequence()
        return found

    assert run(read()) == [*(("one", number) for number in range(7)), (None, 7)]


def test_newest_entries_of_the_audit_log_are_first(store: SqliteStore, run: Run) -> None:
    for number in range(3):
        run(store.add_audit(AuditEntry("t", "me", "job.create", f"{number}", {"n": number})))
    assert [entry.target for entry in run(store.audit(2))] == ["2", "1"]


def test_newest_events_of_a_host_are_found_by_their_type(store: SqliteStore, run: Run) -> None:
    def made(host: str | None, kind: str, number: int) -> dict[str, object]:
        return {"type": kind, "run": "r", "at": "t", "host": host, "data": {"number": number, "names": {"host": "a"}}}

    events = [made("a", "line", 1), made("b", "line", 2), made("a", "plan", 3), made(None, "line", 4)]
    events += [made("a", "line", 5), {**made("a", "line", 6), "data": float("nan")}, made("a", "warning", 7)]
    run(store.add_events("j", events))
    found = run(store.newest_events("a", ("line", "warning"), 2))
    assert [one.event["data"]["number"] for one in found] == [5, 7]


def test_newest_events_of_a_job_are_found_by_their_type(store: SqliteStore, run: Run) -> None:
    def made(kind: str, number: int) -> dict[str, object]:
        return {"type": kind, "run": "r", "at": "t", "host": "a", "data": {"number": number, "type": "lock_waited"}}

    run(store.add_events("j", [made("lock_waited", 1), made("line", 2), made("lock_waited", 3), made("plan", 4)]))
    run(store.add_events("k", [made("lock_waited", 5)]))
    found = run(store.newest_events_of_job("j", ("lock_waited", "plan"), 2))
    assert [one.event["data"]["number"] for one in found] == [3, 4]
