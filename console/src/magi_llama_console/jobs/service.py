# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The jobs of a console: taken from requests, started in turn, followed, cancelled; found again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import ansible
from ..settings import Settings
from ..store.base import ENDED, Job, Store, StoreUnavailable, now
from . import launcher as processes
from .follow import follow, follow_to_end, missing_end, reported_rc
from .launcher import Ended, Launcher, LaunchError
from .queue import schedule
from .requests import Request, command
from .runner import CANNOT_START

LOG = logging.getLogger(__name__)
# How often running jobs are looked at. Nothing is, while there are none.
STEP_SECONDS = 0.1
# How often the events of ended jobs are tried again that the store could not take, while nothing runs.
BEHIND_SECONDS = 1.0
# The file in a job's folder that says so, for the next console.
BEHIND = "behind"
# A killed run has no exit status of its own.
KILLED = 137


class Jobs:
    """run() is one task of the application; the other methods are called from requests."""

    def __init__(self, settings: Settings, store: Store, launcher: Launcher) -> None:
        self._settings, self._store, self._launcher = settings, store, launcher
        self._running: dict[str, Job] = {}
        self._queued: dict[str, Job] = {}
        # Ended, but not all of their events are in the store.
        self._behind: set[str] = set()
        self._wake = asyncio.Event()
        # One change of a job at a time: each begins with the job as it is by then.
        self._changing = asyncio.Lock()
        # Changes with each change of a job, for those who wait for one.
        self.version = 0

    def folder(self, job_id: str) -> Path:
        return self._settings.jobs / job_id

    def is_behind(self, job_id: str) -> bool:
        """Whether events of an ended job are still to come, as its store could not take them."""
        return job_id in self._behind

    async def submit(self, request: Request, *, by: str, key: str = "", fingerprint: str = "") -> tuple[Job, bool]:
        """Queue a request; the job, and whether it is new (a key that was used before names the job of that time).

        Raises KeyReused.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        job = Job(
            id=f"{stamp}-{secrets.token_hex(4)}",
            verb=request.verb,
            variables=dict(request.variables),
            hosts=request.hosts,
            by=by,
            created_at=now(),
        )
        # It says at once what it waits for.
        _, waits = schedule([*self._running.values()], [*self._queued.values(), job], self._settings.jobs_at_once)
        job = replace(job, waits_for=waits.get(job.id))
        kept = await self._store.add_job(job, key=key, fingerprint=fingerprint)
        if kept.id != job.id:
            return kept, False
        self._queued[job.id] = job
        self._changed()
        return job, True

    async def cancel(self, job: Job) -> Job:
        """End a job: a queued one at once, a running one by INT, 20 s later TERM, 5 s later KILL."""
        at = now()
        if done := await self._change(job, "queued", state="cancelled", ended_at=at, cancelled_at=at, waits_for=None):
            return done
        running = self._running.get(job.id)
        if running is not None and running.cancelled_at is None:
            running = await self._change(job, "running", cancelled_at=at)
        if running is None:
            return await self._store.job(job.id) or job
        # Each step does that again until the job has ended: its process may not have begun.
        processes.cancel(self.folder(job.id))
        return running

    async def run(self) -> None:
        """Take up the jobs of the previous console, then carry out jobs until cancelled."""
        self._running, self._queued, self._behind = {}, {}, set()
        for job in reversed(await self._store.jobs(("queued", "running"), limit=1 << 20)):
            (self._running if job.state == "running" else self._queued)[job.id] = job
        for name in sorted(path.parent.name for path in self._settings.jobs.glob(f"*/{BEHIND}")):
            if (ended := await self._store.job(name)) is not None and ended.state in ENDED:
                self._behind.add(name)
        for job in list(self._running.values()):
            # Harmless if its process has started: the runner's file pid is there once.
            if not (self.folder(job.id) / "pid").exists():
                await self._launch(job)
        while True:
            try:
                await self._step()
            except OSError:
                # A full disk, for example: a later step may succeed.
                LOG.exception("a step of the jobs failed")
                await asyncio.sleep(1)
            self._wake.clear()
            waiting = BEHIND_SECONDS if self._behind else None
            timeout = STEP_SECONDS if self._running or self._startable() else waiting
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)

    def _startable(self) -> bool:
        return bool(schedule([*self._running.values()], [*self._queued.values()], self._settings.jobs_at_once)[0])

    async def _step(self) -> None:
        for job in list(self._running.values()):
            try:
                await self._look(job)
            except StoreUnavailable:
                # The run continues, and its file has its events; they are read when the store is there again.
                await asyncio.sleep(STEP_SECONDS)
            except (OSError, ValueError, KeyError, TypeError):
                # Files of this job that cannot be read: the others are carried out all the same.
                LOG.exception("job %s cannot be followed", job.id)
                await asyncio.sleep(STEP_SECONDS)
        await self._catch_up()
        starting, waits = schedule([*self._running.values()], [*self._queued.values()], self._settings.jobs_at_once)
        for job in starting:
            # One that was cancelled while another was launched is not queued any more.
            if launched := await self._change(job, "queued", state="running", started_at=now(), waits_for=None):
                await self._launch(launched)
        for job in list(self._queued.values()):
            if job.waits_for != waits.get(job.id):
                await self._change(job, "queued", waits_for=waits.get(job.id))

    async def _look(self, job: Job) -> None:
        """Follow a running job, and end it where its process has."""
        folder = self.folder(job.id)
        if processes.is_overdue(folder) and processes.give_up(folder):
            _explain(folder, f"the process of the job has not begun within {processes.START_SECONDS:.0f} s")
        ended = processes.state(folder)
        # As it is by now: it may have been cancelled since the step began.
        if ended is None and self._running.get(job.id, job).cancelled_at is not None:
            processes.cancel(folder)
        if ended is not None:
            await self._end(job, ended)
            return
        await follow(self._store, job.id, folder / "events.jsonl")

    async def _catch_up(self) -> None:
        """Bring the events of ended jobs into the store that it could not take before."""
        for name in sorted(self._behind):
            job = await self._store.job(name)
            if job is not None:
                try:
                    await self._add_rest(job, KILLED if job.rc is None else job.rc)
                except StoreUnavailable:
                    return
                except (OSError, ValueError, KeyError, TypeError):
                    LOG.exception("the last events of job %s cannot be read", name)
            self._behind.discard(name)
            if job is not None:
                # Those who wait for them look again.
                await self._save(job)

    async def _add_rest(self, job: Job, rc: int) -> None:
        """Bring all that an ended run has sent into the store, with its end. Raises StoreUnavailable."""
        folder = self.folder(job.id)
        events = folder / "events.jsonl"
        await follow_to_end(self._store, job.id, events)
        if event := missing_end(job, events, rc):
            await self._store.add_events(job.id, [event])
        (folder / BEHIND).unlink(missing_ok=True)

    async def _launch(self, job: Job) -> None:
        folder = self.folder(job.id)
        try:
            self._write_request(job, folder)
            await self._launcher.start(folder)
        except (OSError, LaunchError) as error:
            LOG.error("job %s: %s", job.id, error)
            with contextlib.suppress(OSError):
                # A full disk, for example: nothing was started then.
                if not processes.give_up(folder):
                    # It has begun all the same.
                    return
            _explain(folder, str(error))
            await self._change(job, "running", state="failed", rc=CANNOT_START, ended_at=now())

    def _write_request(self, job: Job, folder: Path) -> None:
        settings = self._settings
        argv, variables = command(
            Request(job.verb, job.variables, job.hosts),
            program=settings.ansible_bin / "ansible-playbook",
            inventory=settings.inventory,
            checkout=settings.checkout,
            folder=folder,
        )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {
            **ansible.environment(settings),
            # A unit has credentials of its own, and says where.
            **({} if settings.job_unit else ansible.secret_files(settings)),
            "MAGI_EVENTS": str(folder / "events.jsonl"),
            "MAGI_RUN_ID": job.id,
            "ANSIBLE_CALLBACKS_ENABLED": "magi.llama.events",
            "PYTHONUNBUFFERED": "1",
        }
        request = {
            "argv": argv,
            "cwd": str(settings.checkout or folder),
            "environment": environment,
            "pass_environment": list(settings.pass_environment),
        }
        for name, content in (("vars.json", variables), ("request.json", request)):
            _write_private(folder / name, content)

    async def _end(self, job: Job, ended: Ended) -> None:
        """End a job whose process has ended, with its events in the store; where it cannot take them they come later.

        Its hosts are free again: a store that is full or away holds up no other job.
        """
        events = self.folder(job.id) / "events.jsonl"
        with contextlib.suppress(StoreUnavailable):
            await follow_to_end(self._store, job.id, events)
        # As it is by now: it may have been cancelled meanwhile.
        job = self._running.get(job.id, job)
        is_cancelled = ended.is_cancelled or (ended.rc in (None, CANNOT_START) and job.cancelled_at is not None)
        rc = ended.rc
        if rc is None:
            # The process that waits for the command was killed: the command may have reported its end nevertheless.
            rc = KILLED if is_cancelled else reported_rc(job.id, events)
        ended_at = ended.ended_at or now()
        try:
            await self._add_rest(replace(job, ended_at=ended_at), KILLED if rc is None else rc)
        except StoreUnavailable:
            if events.exists():
                (events.parent / BEHIND).touch(mode=0o600)
                self._behind.add(job.id)
        state = "lost" if rc is None else "cancelled" if is_cancelled else "failed" if rc else "finished"
        await self._change(job, "running", state=state, rc=rc, ended_at=ended_at)
        for old in await self._store.prune(self._settings.jobs_kept):
            self._behind.discard(old)
            shutil.rmtree(self.folder(old), ignore_errors=True)

    async def _change(self, job: Job, was: str, /, **fields: Any) -> Job | None:
        """Change a job as it is by now; None where its state is not this one any more."""
        async with self._changing:
            current = (self._queued if was == "queued" else self._running).get(job.id)
            return None if current is None else await self._save(replace(current, **fields))

    async def _save(self, job: Job) -> Job:
        await self._store.save_job(job)
        for state, jobs in (("queued", self._queued), ("running", self._running)):
            if job.state == state:
                # A job that is there already keeps its place in the queue.
                jobs[job.id] = job
            else:
                jobs.pop(job.id, None)
        self._changed()
        return job

    def _changed(self) -> None:
        self.version += 1
        self._wake.set()


def _explain(folder: Path, text: str) -> None:
    """Say in a job's output why it has none, if that can be written."""
    with contextlib.suppress(OSError):
        (folder / "output.log").write_text(f"{text}\n", encoding="utf-8")


def _write_private(path: Path, content: Mapping[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
