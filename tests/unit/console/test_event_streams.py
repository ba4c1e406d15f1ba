# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams of events: they wait while there is nothing to send, end with their job, and are limited in number."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from magi_llama_console.api.problems import Problem
from magi_llama_console.api.security import Principal
from magi_llama_console.api.v1 import events
from magi_llama_console.store.base import Event, Job
from magi_llama_console.store.sqlite import SqliteStore
from magi_llama_console.streams import STREAMS, STREAMS_EACH, Streams

JOB = Job(id="run", verb="site", variables={}, hosts=("a",), by="me", created_at="t", state="running")


class Waiting(Exception):
    """The stream waits, for an event above the number."""


class WatchedStore(SqliteStore):
    async def wait(self, after: int, seconds: float) -> bool:
        raise Waiting(after)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = WatchedStore(tmp_path / "console.db")
    yield store
    asyncio.run(store.close())


def stream(store: SqliteStore) -> events.Stream:
    console: Any = SimpleNamespace(store=store, jobs=SimpleNamespace(version=1))
    request: Any = None
    return events.Stream(console, request, 0, JOB, True)


def test_stream_of_a_job_waits_although_other_runs_send_events(store: SqliteStore) -> None:
    async def listen() -> None:
        await store.add_job(JOB)
        await store.add_events("run", [{"n": 1}])
        await store.add_events("other", [{"n": 2}, {"n": 3}])
        async for _message in stream(store).messages():
            pass

    with pytest.raises(Waiting) as waiting:
        asyncio.run(listen())
    # Not for one above 1, which is there already.
    assert waiting.value.args == (3,)


def test_end_of_a_job_while_its_events_are_sent_ends_the_stream(store: SqliteStore) -> None:
    async def listen() -> list[str]:
        await store.add_job(JOB)
        await store.add_events("run", [{"n": 1}])
        found = []
        async for message in stream(store).messages():
            found.append(message.state if isinstance(message, Job) else type(message).__name__)
            if isinstance(message, Job) and message.state == "running":
                await store.add_events("run", [{"n": 2}])
                await store.save_job(replace(JOB, state="finished"))
        return found

    found = asyncio.run(listen())
    assert found.count(Event.__name__) == 2


def test_place_above_the_newest_event_is_the_newest() -> None:
    assert events._place("", 5, 9) == 5
    assert events._place("", 50, 9) == 9
    assert events._place("999999999999999999", 0, 9) == 9
    assert events._place("7", 0, 9) == 7


def opened(streams: Any, name: str, sent: list[str]) -> Any:
    """A response whose client stays until it is cancelled."""
    console: Any = SimpleNamespace(streams=streams)

    async def body() -> Any:
        yield "\n"
        await asyncio.Event().wait()

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    response = events.CountedResponse(Principal(name, "read"), console, body())
    return response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)


def test_each_principal_has_so_many_streams_and_all_together_too() -> None:
    async def act() -> list[int]:
        streams, sent = Streams(), list[str]()
        tasks = [
            asyncio.create_task(opened(streams, f"user{number // STREAMS_EACH}", sent)) for number in range(STREAMS)
        ]
        while sent.count("http.response.start") < STREAMS:
            await asyncio.sleep(0)
        statuses = []
        for name in ("user0", "new"):
            before = list(sent)
            with pytest.raises(Problem) as refused:
                await opened(streams, name, sent)
            statuses.append(refused.value.status)
            assert sent == before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Those that have ended are not counted.
        again = asyncio.create_task(opened(streams, "user0", sent := list[str]()))
        while not sent:
            await asyncio.sleep(0)
        again.cancel()
        return statuses

    assert asyncio.run(act()) == [429, 429]
    assert (STREAMS_EACH, STREAMS) == (8, 64)
