# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bench, a test run or the make above it that is interrupted leaves no process that it has started."""

from __future__ import annotations

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
# A daemon in a session of its own with nothing of the caller's environment, as the collection's servers have it.
DAEMON = """\
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {"MAGI_LLAMA_STATE": sys.argv[1]})
"""
# One that inherits the environment and ignores what asks it to end.
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
TEST = """\
import subprocess, sys, time
from support import reaper

def test_that_is_interrupted(tmp_path):
    state = {state!r}
    reaper.watch(state)
    with reaper.undone_if_killed("touch", {undone!r}), reaper.undone_if_killed("touch", {undone!r} + "-left"):
        pass
    with reaper.undone_if_killed("touch", {undone!r}):
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
    """The processes that have a folder in their command or environment, by all that /proc says of them."""
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
    """The environment of a run of its own, not of a worker of this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return {**kept, "PYTHONPATH": f"{checkout.ROOT}/tests:{checkout.ROOT}/collections", **more}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where nothing but the interrupted run has anything."""
    with reaper.temporary_folder("magi-") as path:
        yield path


def start_test_run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A test run with three processes of different kinds, once all are there."""
    state = folder / "state"
    test = folder / "test_interrupted.py"
    test.write_text(TEST.format(state=str(state), undone=str(folder / "undone"), daemon=DAEMON, stubborn=STUBBORN))
    command = [sys.executable, "-m", "pytest", "-c", f"{checkout.ROOT}/pyproject.toml", "-p", "support.pytest_reaper"]
    command += [f"--rootdir={folder}", "--basetemp", f"{folder}/tmp", "-p", "no:cacheprovider", *arguments, str(test)]
    run = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: list(folder.glob("tmp/**/asleep")) or run.poll() is not None, "nothing started")
    time.sleep(0.2)
    assert len([line for line in mentioning(folder) if "time.sleep(600)" in line]) == 3, mentioning(folder)
    return run


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_test_run_that_is_interrupted_leaves_no_process(which: signal.Signals, folder: Path) -> None:
    run = start_test_run(folder)
    os.kill(run.pid, which)
    output, _ = run.communicate(timeout=SECONDS)
    wait_until(lambda: not mentioning(folder), f"{mentioning(folder)}\n{output}")
    # INT lets the test leave its block by itself.
    wait_until(lambda: (folder / "undone").exists() == (which is not signal.SIGINT), "undone")
    assert not (folder / "undone-left").exists()


def test_a_run_with_workers_whose_controller_is_killed_leaves_no_process(folder: Path) -> None:
    run = start_test_run(folder, "-n", "1")
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=SECONDS)
    wait_until(lambda: not mentioning(folder), str(mentioning(folder)))


def test_what_a_killed_reaper_leaves_is_cleaned_up_by_the_next_run(folder: Path) -> None:
    before = set(reaper.RECORDS.iterdir())
    run = start_test_run(folder)
    [record] = set(reaper.RECORDS.iterdir()) - before
    [pid] = [int(line.split()[0]) for line in mentioning(record)]
    os.kill(pid, signal.SIGKILL)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=SECONDS)
    time.sleep(0.5)
    assert mentioning(folder)
    subprocess.run([sys.executable, "-c", "from support import reaper; reaper.begin()"], env=environment(), check=True)
    assert not mentioning(folder)
    assert not record.exists()


def bench_servers(cache: Path) -> list[str]:
    # The loop role's servers name nothing of the bench in their commands, but their supervisor's socket.
    return [line for line in mentioning(cache) if "llama-server" in line or "supervisord" in line]


@pytest.mark.skipif(not (BINARIES / "llama-server").exists() or not MODELS.exists(), reason="run make demo first")
@pytest.mark.parametrize(
    ("which", "whom"),
    [(signal.SIGTERM, "make"), (signal.SIGINT, "group"), (signal.SIGKILL, "make")],
    ids=["TERM to make", "INT to all", "KILL to make"],
)
def test_a_bench_that_is_interrupted_leaves_no_server(which: signal.Signals, whom: str, folder: Path) -> None:
    given = environment(MAGI_BENCH_CACHE=str(folder), MAGI_BENCH_JSON=str(folder / "bench.json"))
    with (folder / "log").open("w") as log:
        make = subprocess.Popen(
            ["make", "bench", "BENCH=runs"],
            cwd=checkout.ROOT,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_until(lambda: bench_servers(folder) or make.poll() is not None, "no server", 120)
    assert make.poll() is None, (folder / "log").read_text()
    if whom == "group":
        os.killpg(make.pid, which)
    else:
        os.kill(make.pid, which)
    make.wait(timeout=SECONDS)
    wait_until(lambda: not mentioning(folder), f"{json.dumps(mentioning(folder), indent=1)}")
