# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans are found by their hash without reading every document, and a repeated request has the first one's job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response
from magi_llama_console.api.problems import Problem
from magi_llama_console.api.security import Principal
from magi_llama_console.api.v1 import plans
from magi_llama_console.api.v1.jobs import submit
from magi_llama_console.fleet.inventory import InventoryError
from magi_llama_console.fleet.watch import read_document
from magi_llama_console.jobs.requests import Known
from magi_llama_console.jobs.service import Jobs
from magi_llama_console.settings import Settings
from magi_llama_console.store.base import Job
from magi_llama_console.store.sqlite import SqliteStore

HASHES = [f"{number}" * 64 for number in range(5)]


class FakeKnown:
    """Can be read once."""

    def __init__(self) -> None:
        self.reads = 0

    async def read(self) -> Known:
        self.reads += 1
        if self.reads > 1:
            raise InventoryError("hosts.yml is broken")
        return Known(hosts=("a",))


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Any]:
    settings = Settings(inventory=tmp_path, data=tmp_path)
    settings.jobs.mkdir()
    store = SqliteStore(settings.database)
    launcher: Any = None
    yield SimpleNamespace(
        settings=settings, store=store, jobs=Jobs(settings, store, launcher), known=FakeKnown(), fleet=None
    )
    asyncio.run(store.close())


def job(name: str, started_at: str, verb: str = "plan") -> Job:
    return Job(name, verb, {}, ("a",), "me", "t", state="finished", started_at=started_at)


async def fill(console: Any) -> None:
    for number, hash in enumerate(HASHES):
        await console.store.add_job(job(f"job{number}", "2"))
        console.jobs.folder(f"job{number}").mkdir()
        (console.jobs.folder(f"job{number}") / "result.json").write_text(json.dumps({"hash": hash, "hosts": {}}))


def test_only_the_plan_that_is_asked_for_is_read_again(console: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(path: Path) -> dict[str, Any] | None:
        read.append(path.parent.name)
        return read_document(path)

    monkeypatch.setattr(plans, "read_document", reading)

    async def act() -> str:
        await fill(console)
        await plans.find(console, HASHES[1])
        read.clear()
        return (await plans.find(console, HASHES[3]))[0].id

    assert asyncio.run(act()) == "job3"
    assert read == ["job3"]


def test_repeated_apply_has_the_same_job_although_it_has_changed_the_host(console: Any) -> None:
    request: Any = SimpleNamespace(client=None)
    operator = Principal("me", "operate")

    async def apply(hash: str = HASHES[0], key: str = "k") -> str:
        answer = await plans.apply_plan(hash, request, Response(), console, operator, None, key)
        return answer.job.id

    async def act() -> tuple[str, str]:
        await fill(console)
        first = await apply()
        await console.store.add_job(job("later", "3", "site"))
        second = await apply()
        for hash, key in ((HASHES[0], "other"), (HASHES[1], "k")):
            with pytest.raises(Problem) as refused:
                await apply(hash, key)
            assert refused.value.status == 409
        return first, second

    first, second = asyncio.run(act())
    assert first == second


def test_repeated_request_has_the_same_job_although_it_would_be_refused_now(console: Any) -> None:
    async def act() -> list[str]:
        answers = [await submit(console, "status", {"limit": ["a"]}, by="me", key="k") for _ in range(2)]
        with pytest.raises(Problem) as refused:
            await submit(console, "status", {}, by="me", key="k")
        assert refused.value.status == 409
        return [one.id for one in answers]

    first, second = asyncio.run(act())
    assert (first == second, console.known.reads) == (True, 1)
