# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs are cancelled whenever that is requested, and end although their process never began."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from magi_llama_console.jobs import launcher, runner, service
from magi_llama_console.jobs.requests import Request
from magi_llama_console.jobs.service import Jobs
from magi_llama_console.settings import Settings
from magi_llama_console.store.base import Event, Job, StoreUnavailable
from magi_llama_console.store.sqlite import SqliteStore


class FakeLauncher:
    """Starts nothing; at_start is called instead."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.at_start: Callable[[Path], Awaitable[None]] | None = None

    async def start(self, folder: Path) -> None:
        self.started.append(folder.name)
        if self.at_start:
            await self.at_start(folder)


class Bed:
    def __init__(self, folder: Path) -> None:
        self.settings = Settings(inventory=folder / "hosts.yml", data=folder)
        self.settings.jobs.mkdir()
        self.store, self.launcher = SqliteStore(folder / "console.db"), FakeLauncher()
        self.jobs = Jobs(self.settings, self.store, self.launcher)

    async def submit(self, host: str) -> Job:
        return (await self.jobs.submit(Request("status", {}, (host,)), by="me"))[0]

    async def now(self, job: Job) -> Job:
        found = await self.store.job(job.id)
        assert found
        return found


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(tmp_path)
    yield bed
    asyncio.run(bed.store.close())


def test_job_that_is_cancelled_before_its_process_has_begun_is_cancelled_then(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    async def act() -> Job:
        job = await bed.submit("a")
        await bed.jobs._step()
        await bed.jobs.cancel(job)
        # The runner comes only now.
        own = runner.identity(os.getpid())
        (bed.jobs.folder(job.id) / "pid").write_text(json.dumps(own))
        monkeypatch.setattr("os.kill", lambda _pid, number: sent.append(number))
        await bed.jobs._step()
        return await bed.now(job)

    assert (asyncio.run(act()).state, sent) == ("running", [signal.SIGINT])


def test_queued_job_that_is_cancelled_while_another_is_launched_does_not_run(bed: Bed) -> None:
    async def act() -> tuple[Job, list[str]]:
        first, second = await bed.submit("a"), await bed.submit("b")

        async def cancel_second(_folder: Path) -> None:
            await bed.jobs.cancel(second)

        bed.launcher.at_start = cancel_second
        await bed.jobs._step()
        assert bed.launcher.started[0] == first.id
        return await bed.now(second), bed.launcher.started[1:]

    second, started = asyncio.run(act())
    assert (second.state, started) == ("cancelled", [])


def test_job_whose_process_never_begins_ends_and_a_late_one_does_nothing(bed: Bed) -> None:
    async def act() -> tuple[Job, Job, Path]:
        job, next_one = await bed.submit("a"), await bed.submit("a")
        await bed.jobs._step()
        folder = bed.jobs.folder(job.id)
        await bed.jobs._step()
        assert (await bed.now(job)).state == "running"
        old = (folder / "request.json").stat().st_mtime - launcher.START_SECONDS - 1
        os.utime(folder / "request.json", (old, old))
        await bed.jobs._step()
        return await bed.now(job), await bed.now(next_one), folder

    job, next_one, folder = asyncio.run(act())
    assert (job.state, job.rc, next_one.state) == ("failed", runner.CANNOT_START, "running")
    assert "has not begun within 60 s" in (folder / "output.log").read_text()
    late = subprocess.run([sys.executable, "-I", runner.__file__, str(folder)], check=False)
    assert late.returncode == 75


def test_job_without_its_request_ends(bed: Bed) -> None:
    async def act() -> Job:
        job = await bed.submit("a")
        await bed.jobs._step()
        (bed.jobs.folder(job.id) / "request.json").unlink()
        await bed.jobs.cancel(job)
        await bed.jobs._step()
        return await bed.now(job)

    job = asyncio.run(act())
    assert (job.state, job.rc) == ("cancelled", runner.CANNOT_START)


def test_job_whose_files_cannot_be_written_ends(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    async def act() -> tuple[Job, Job]:
        first, second = await bed.submit("a"), await bed.submit("b")
        monkeypatch.setattr(service, "_write_private", full)
        monkeypatch.setattr(launcher, "write_once", full)
        monkeypatch.setattr(Path, "write_text", full)
        await bed.jobs._step()
        return await bed.now(first), await bed.now(second)

    assert [(one.state, one.rc) for one in asyncio.run(act())] == [("failed", runner.CANNOT_START)] * 2


async def takes_nothing(*_: object) -> None:
    raise StoreUnavailable("OOM command not allowed when used memory > 'maxmemory'.")


def run_of(job: Job, folder: Path, *, is_killed: bool = False) -> None:
    """What a run that has ended leaves in its folder."""
    (folder / "pid").write_text(json.dumps({"pid": 1 << 23, "started": 1, "boot_id": "of an earlier boot"}))
    if not is_killed:
        (folder / "rc").write_text(json.dumps({"rc": 0, "cancelled": False, "ended_at": "2026-11-27T18:00:00.000Z"}))
    kinds = ["run_started", "line"] if is_killed else ["run_started", "run_ended"]
    events = [{"run": job.id, "seq": seq, "type": kind, "data": {}} for seq, kind in enumerate(kinds, 1)]
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))


def types(events: list[Event]) -> list[str]:
    return [str(one.event["type"]) for one in events]


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("is_restarted", [False, True])
def test_job_ends_while_the_store_takes_no_events_and_they_come_later(
    bed: Bed, is_killed: bool, is_restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, jobs = bed.store, bed.jobs
    # As a Redis whose memory is used up.
    monkeypatch.setattr(store, "add_events", takes_nothing)

    async def act() -> tuple[Job, Job, list[list[str]]]:
        job, next_one = await bed.submit("a"), await bed.submit("a")
        await jobs._step()
        run_of(job, jobs.folder(job.id), is_killed=is_killed)
        await jobs._step()
        ended, begun = await bed.now(job), await bed.now(next_one)
        assert ended.ended_at, ended
        later = Jobs(bed.settings, store, bed.launcher) if is_restarted else jobs
        if is_restarted:
            running = asyncio.create_task(later.run())
            while not later._behind:
                await asyncio.sleep(0)
            running.cancel()
        assert later.is_behind(job.id)
        found = [types(await store.events(job=job.id))]
        monkeypatch.undo()
        for _ in range(2):
            await later._step()
            found.append(types(await store.events(job=job.id)))
        assert not later.is_behind(job.id)
        assert await bed.now(job) == ended
        assert not (later.folder(job.id) / service.BEHIND).exists()
        return ended, begun, found

    job, next_one, found = asyncio.run(act())
    assert (job.state, job.rc) == (("lost", None) if is_killed else ("finished", 0))
    # Its host is free again.
    assert next_one.state == "running"
    all_of_it = ["run_started", "line", "run_ended"] if is_killed else ["run_started", "run_ended"]
    assert found == [[], all_of_it, all_of_it]
