# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which jobs may start: those of different hosts side by side, those of one host one after another, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..store.base import CONSOLE, Job
from .requests import LOOKING


def schedule(
    running: Sequence[Job], queued: Sequence[Job], at_once: int
) -> tuple[list[Job], dict[str, Mapping[str, str]]]:
    """The queued jobs (oldest first) that start now, and what each of the others waits for.

    A job also waits for an older one that is itself waiting, so one for the whole fleet gets its turn. What it waits
    for is {"host": …, "job": …}; host is empty where only the number of jobs at once keeps it. No job waits for one by
    which the console itself only looks.
    """
    owners = {host: job.id for job in running if not gives_way(job) for host in job.hosts}
    started: list[Job] = []
    waits: dict[str, Mapping[str, str]] = {}
    for job in queued:
        taken = next((host for host in job.hosts if host in owners), None)
        if taken is not None:
            waits[job.id] = {"host": taken, "job": owners[taken]}
        elif len(running) + len(started) >= at_once:
            waits[job.id] = {"host": "", "job": (running[0] if running else started[0]).id}
        else:
            started.append(job)
        for host in () if gives_way(job) else job.hosts:
            owners.setdefault(host, job.id)
    return started, waits


def gives_way(job: Job) -> bool:
    """Whether the console has requested the job itself, to look at hosts: it changes nothing and takes no lock."""
    return job.by == CONSOLE and (job.verb in LOOKING or job.is_check)
