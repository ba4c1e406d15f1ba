# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Distributing work over several processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import pool


@pytest.mark.parametrize(("workers", "count"), [(1, 5), (2, 0), (2, 1), (3, 5), (2, 20_000)])
def test_work_items_are_each_done_once(workers: int, count: int) -> None:
    outcome = pool.run(count, lambda index: [index, os.getpid()], workers=workers, serial_seconds=0.0)
    assert sorted(outcome.results) == list(range(count))
    assert all(index == result[0] for index, result in outcome.results.items())
    assert outcome.lost == []
    processes = {result[1] for result in outcome.results.values()}
    assert len(processes) <= max(1, workers)
    assert (os.getpid() in processes) == (workers == 1 or count == 1)


def test_one_page_pipe_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel makes pipes this small for users who have many.
    real = os.pipe

    def small() -> tuple[int, int]:
        ends = real()
        fcntl.fcntl(ends[1], 1031, 4096)
        return ends

    monkeypatch.setattr(os, "pipe", small)

    def too_late(*_frame: object) -> None:
        raise TimeoutError("the pool waits for itself")

    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(10)
    try:
        outcome = pool.run(3000, lambda index: index, workers=2, serial_seconds=0.0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert len(outcome.results) == 3000


def test_small_work_runs_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert len(pool.run(10, lambda index: index, workers=4).results) == 10


def test_worker_death_loses_only_its_item() -> None:
    def work(index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    outcome = pool.run(10, work, workers=2, serial_seconds=0.0)
    assert sorted(outcome.results) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert outcome.lost == [3]


def test_fork_failure_falls_back_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    outcome = pool.run(10, lambda index: index, workers=2, serial_seconds=0.0)
    assert sorted(outcome.results) == list(range(10))


@pytest.mark.parametrize("workers", [1, 2])
def test_deadline_stops_after_at_least_one_item(workers: int) -> None:
    def work(index: int) -> Any:
        time.sleep(0.01)
        return index

    over = pool.run(1000, work, workers=workers, deadline=time.monotonic(), serial_seconds=0.0)
    assert sorted(over.results) == [0]
    # All of it would take 5 s at least, however quick the machine is.
    soon = pool.run(1000, work, workers=workers, deadline=time.monotonic() + 1, serial_seconds=0.0)
    assert 2 <= len(soon.results) < 1000
    assert soon.lost == []


def test_workers_exit_when_parent_dies(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.insert(0, 'collections')\n"
        "from ansible_collections.magi.llama.plugins.module_utils._core import pool\n"
        "def work(index):\n"
        "    open(f'{sys.argv[1]}/{os.getpid()}', 'w').close()\n"
        "    return 'x' * 100_000\n"
        "pool._collect = lambda children: os.kill(os.getpid(), 9)\n"
        "pool.run(1000, work, workers=3, serial_seconds=0.0)\n"
    )
    repository = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=repository, check=False, timeout=60)
    ends_at = time.monotonic() + 10
    while any(is_alive(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_and_descriptors_are_cleaned_up() -> None:
    before = len(os.listdir("/proc/self/fd")), children()
    pool.run(50, lambda index: "x" * 100_000, workers=3, serial_seconds=0.0)
    assert (len(os.listdir("/proc/self/fd")), children()) == before


def children() -> set[str]:
    """The PIDs of this process's children, ended ones that were not waited for too; a test before may have left some."""
    return {pid for tasks in Path("/proc/self/task").iterdir() for pid in (tasks / "children").read_text().split()}
