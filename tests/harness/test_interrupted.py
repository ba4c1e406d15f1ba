# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An interrupted bench, test run or make leaves no process that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import checkout, reaper
from support.bed import BINARIES, MODELS

SECONDS = 30.0
# A daemon in its own session without the caller's environment, like the collection's servers.
DAEMON = """\
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {"MAGI_LLAMA_STATE": sys.argv[1]})
"""
# A process that inherits the environment and ignores SIGTERM.
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
TEST = """\
import subprocess, sys, time
from support import reaper

def test_that_is_interrupted(tmp_path):
    state = {state!r}
    reaper.watch(state)
    with reaper.cleanup_if_killed("touch", {undone!r}), reaper.cleanup_if_killed("touch", {undone!r} + "-left"):
        pass
    with reaper.cleanup_if_killed("touch", {undone!r}):
        subprocess.run([sys.executable, "-c", {daemon!r}, state + "/deep"], check=True)
        subprocess.run([sys.executable, "-c", {daemon!r}, str(tmp_path)], check=True)
        subprocess.Popen([sys.executable, "-c", {stubborn!r}, state], start_new_session=True)
        (tmp_path / "asleep").touch()
        time.sleep(600)
"""


def wait_until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def mentioning(folder: Path) -> list[str]:
    """Processes with the folder in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in said and int(process.name) != os.getpid():
            found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r:.300}")
    return found


def environment(**more: str) -> dict[str, str]:
    """The environment of a separate run, not of a worker of this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return {**kept, "PYTHONPATH": f"{checkout.ROOT}/tests:{checkout.ROOT}/collections", **more}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that only the interrupted run uses."""
    with reaper.temporary_folder("magi-") as path:
        yield path


def record_of(run: subprocess.Popen[str]) -> Path:
    """The record of a run: its reaper has both on its command line. Other runs begin and end at the same time."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if reaper.__file__ in words and str(run.pid) in words:
                return Path(words[words.index(reaper.__file__) + 1])
    raise AssertionError(f"run {run.pid} has no reaper")


@contextlib.contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A test run whose three processes of different kinds run, and its record. A failure leaves no run behind."""
    state = folder / "state"
    test = folder / "test_interrupted.py"
    test.write_text(TEST.format(state=str(state), undone=str(folder / "undone"), daemon=DAEMON, stubborn=STUBBORN))
    command = [sys.executable, "-m", "pytest", "-c", f"{checkout.ROOT}/pyproject.toml", "-p", "support.pytest_reaper"]
    command += [f"--rootdir={folder}", "--basetemp", f"{folder}/tmp", "-p", "no:cacheprovider", *arguments, str(test)]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            wait_until(lambda: list(folder.glob("tmp/**/asleep")) or run.poll() is not None, "nothing started")
            time.sleep(0.2)
            assert len([line for line in mentioning(folder) if "time.sleep(600)" in line]) == 3, mentioning(folder)
            yield run, record_of(run)
        finally:
            # At the latest now; its reaper stops the rest.
            run.kill()


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_run_leaves_no_process(which: signal.Signals, folder: Path) -> None:
    with started(folder) as (run, record):
        os.kill(run.pid, which)
        output, _ = run.communicate(timeout=SECONDS)
        wait_until(lambda: not mentioning(folder), f"{mentioning(folder)}\n{output}")
        wait_until(lambda: not record.exists(), "the reaper has not ended")
    # After SIGINT the test itself leaves its block.
    wait_until(lambda: (folder / "undone").exists() == (which is not signal.SIGINT), "undone")
    assert not (folder / "undone-left").exists()


def test_run_with_workers_leaves_no_process_when_its_controller_is_killed(folder: Path) -> None:
    with started(folder, "-n", "1") as (run, record):
        os.kill(run.pid, signal.SIGKILL)
        run.communicate(timeout=SECONDS)
        wait_until(lambda: not mentioning(folder), str(mentioning(folder)))
        # Until then a worker, which does not mention the folder, may write in it.
        wait_until(lambda: not record.exists(), "the reaper has not ended")


def test_next_run_cleans_up_after_a_killed_reaper(folder: Path) -> None:
    with started(folder) as (run, record):
        [pid] = [int(line.split()[0]) for line in mentioning(record)]
        os.kill(pid, signal.SIGKILL)
        os.kill(run.pid, signal.SIGKILL)
        run.communicate(timeout=SECONDS)
        time.sleep(0.5)
        assert mentioning(folder)
        command = [sys.executable, "-c", "from support import reaper; reaper.begin()"]
        subprocess.run(command, env=environment(), check=True)
        # What was killed may take a moment to be gone.
        deadline = time.monotonic() + SECONDS
        while mentioning(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not mentioning(folder)
        assert not record.exists()


def bench_servers(cache: Path) -> list[str]:
    # Servers of the loop role have the folder only in their environment, as their supervisor's socket.
    return [line for line in mentioning(cache) if "llama-server" in line or "supervisord" in line]


@pytest.mark.skipif(not (BINARIES / "llama-server").exists() or not MODELS.exists(), reason="run make demo first")
@pytest.mark.parametrize(
    ("which", "whom"),
    [(signal.SIGTERM, "make"), (signal.SIGINT, "group"), (signal.SIGKILL, "make")],
    ids=["TERM to make", "INT to all", "KILL to make"],
)
def test_interrupted_bench_leaves_no_server(which: signal.Signals, whom: str, folder: Path) -> None:
    given = environment(MAGI_BENCH_CACHE=str(folder), MAGI_BENCH_JSON=str(folder / "bench.json"))
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            ["make", "bench", "BENCH=runs"],
            cwd=checkout.ROOT,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as make,
    ):
        try:
            wait_until(lambda: bench_servers(folder) or make.poll() is not None, "no server", 120)
            assert make.poll() is None, (folder / "log").read_text()
            if whom == "group":
                os.killpg(make.pid, which)
            else:
                os.kill(make.pid, which)
            make.wait(timeout=SECONDS)
        finally:
            make.kill()
    wait_until(lambda: not mentioning(folder), f"{json.dumps(mentioning(folder), indent=1)}")
