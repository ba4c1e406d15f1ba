# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams of events: they wait while there is nothing to send, end with their job, and are limited in number."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from magi_llama_console.api.problems import Problem
from magi_llama_console.api.security import Principal
from magi_llama_console.api.v1 import events
from magi_llama_console.store.base import Event, Job, StoreUnavailable
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


def stream(store: SqliteStore, follow: bool = True) -> events.Stream:
    console: Any = SimpleNamespace(store=store, jobs=SimpleNamespace(version=1, is_behind=lambda _: False))
    request: Any = SimpleNamespace(headers={"accept": events.LINES}, url=SimpleNamespace(path="/api/v1/events"))
    return events.Stream(console, request, 0, JOB, follow)


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


async def away(*_: object) -> None:
    raise StoreUnavailable


def test_store_that_is_away_after_the_first_look_is_a_problem_of_the_request(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The newest place, which the request has asked for before, is still known.
    monkeypatch.setattr(store, "events", away)
    asyncio.run(store.add_job(JOB))
    with pytest.raises(StoreUnavailable):
        asyncio.run(events._answer(Principal("me", "read"), stream(store, follow=False)))


@pytest.mark.parametrize("form", ["lines", "sse"])
def test_answer_with_what_there_is_says_that_it_is_cut_off(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(events, "BATCH", 2)

    async def listen(is_cut_off: bool) -> list[str]:
        reading = stream(store, follow=False)
        await reading.begin()
        if is_cut_off:
            monkeypatch.setattr(store, "events", away)
        return [text async for text in (reading.as_lines() if form == "lines" else reading.as_sse())]

    async def both() -> tuple[list[str], list[str]]:
        await store.add_job(JOB)
        await store.add_events("run", [{"n": number} for number in range(3)])
        return await listen(is_cut_off=False), await listen(is_cut_off=True)

    whole, cut = asyncio.run(both())
    last = cut[-1].removeprefix("event: problem\ndata: ")
    assert (json.loads(last)["status"], last == cut[-1]) == (503, form == "lines")
    # The first events had been read by then.
    assert [text for text in whole if '"n":' in text][:2] == [text for text in cut if '"n":' in text]
    assert sum('"n":' in text for text in whole) == 3 and "503" not in whole[-1]


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
