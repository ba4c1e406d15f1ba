# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stops everything that a test run or a bench started when that run ends: normally, or by SIGINT, SIGTERM or SIGKILL.

A run begins with `begin()`. The processes that it starts inherit a mark in their environment. The collection's servers
do not, because they get nothing of the caller's environment; the state directories given to `watch()` identify them.
Nodes and mounts are not processes; the commands given to `cleanup_if_killed()` remove them.

A separate process, the reaper, waits until the run, or a `make` above it, has ended. It needs no help from the run, so
it also works after SIGKILL. If the reaper itself was killed, the next run of this checkout does its work.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / ".cache/runs"
# The value has the names of the outer runs and of this one. Tests remove variables of Ansible and of ours from the
# environment of what they start; this name must not match.
MARK = "TEST_RUN_NAMES"
# What every server of the collection has in its environment.
STATE_MARKER = "MAGI_LLAMA_STATE"
GRACE_SECONDS = 2.0  # between TERM and KILL
RUN_SECONDS = 10.0  # for a run to end by itself when the make above it has
COMMAND_SECONDS = 120.0

_numbers = itertools.count()


# --- in the run -------------------------------------------------------------------------------------------------------


def begin() -> str:
    """Start a reaper for this process and mark what it starts from now on. Returns the run's name.

    First cleans up after runs of this checkout whose reaper was killed.
    """
    RECORDS.mkdir(parents=True, exist_ok=True)
    clean_up_dead_runs()
    record = Path(tempfile.mkdtemp(prefix="", dir=RECORDS))
    around = [name for name in (os.environ.get(MARK),) if name]
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # Without our descriptors: a reader of our output would wait until the reaper ends too.
    starter = os.posix_spawn(
        sys.executable,
        [sys.executable, "-S", __file__, str(record), str(os.getpid()), started_at(os.getpid())],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(record / "log"), log, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    os.waitpid(starter, 0)
    deadline = time.monotonic() + 30
    while not (record / "ready").exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the reaper does not start; its log is {record}/log")
        time.sleep(0.005)
    os.environ[MARK] = ":".join([*around, record.name])
    return record.name


def watch(folder: Path | str) -> None:
    """Stop servers whose state directory is in this folder when the run ends."""
    # The server's environment has the path as it was given, which may contain a link.
    for path in {os.path.abspath(folder), os.path.realpath(folder)}:
        _note({"folder": path})


@contextlib.contextmanager
def cleanup_if_killed(*command: str | Path) -> Iterator[None]:
    """If the run is killed within this block, the reaper runs the command in the checkout's root."""
    key = f"{os.getpid()}.{next(_numbers)}"
    _note({"command": [str(part) for part in command], "key": key})
    try:
        yield
    finally:
        _note({"done": key})


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder with a short path for state directories. It and its servers are removed even after SIGKILL."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        watch(name)
        with cleanup_if_killed("rm", "-rf", "--one-file-system", name):
            yield Path(name)


def _note(entry: dict[str, Any]) -> None:
    names = [name for name in os.environ.get(MARK, "").split(":") if name]
    if not names or not (RECORDS / names[-1]).exists():
        names = [begin()]
    # Several processes append; one write is one line.
    with open(RECORDS / names[-1] / "entries", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def clean_up_dead_runs() -> None:
    """Clean up after runs whose reaper was killed: nothing holds the lock of their record."""
    for record in RECORDS.iterdir():
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(record / "ready", encoding="utf-8") as ready:
            fcntl.flock(ready, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clean_up(record)


# --- in the reaper ----------------------------------------------------------------------------------------------------


def reap(record: Path, owner: int, owner_started_at: str) -> None:
    """Wait for the end of the run or of the make above it, then clean up."""
    # Detach: some tests check that they have no child left.
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, 4096)
    with open(record / "starting", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(record / "starting", record / "ready")
        with contextlib.suppress(ProcessLookupError):
            wait_for_end(owner, owner_started_at)
        clean_up(record)


def wait_for_end(owner: int, owner_started_at: str) -> None:
    """Return when the run has ended; stop it when a make above it has. Raises ProcessLookupError if one is missing."""
    run = os.pidfd_open(owner)
    makes = [os.pidfd_open(pid) for pid in ancestors(owner) if command_name(pid) in ("make", "gmake")]
    if started_at(owner) != owner_started_at:
        return  # it has ended, and another process may have its pid
    select.select([run, *makes], [], [])
    if not is_readable(run, 0):
        signal.pidfd_send_signal(run, signal.SIGTERM)
        if not is_readable(run, RUN_SECONDS):
            signal.pidfd_send_signal(run, signal.SIGKILL)


def is_readable(descriptor: int, seconds: float) -> bool:
    """The descriptor of a process is readable once the process has ended."""
    return bool(select.select([descriptor], [], [], seconds)[0])


def started_at(pid: int) -> str:
    """The start time of a process in clock ticks since boot; together with the pid it identifies the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid > 0:
            yield pid


def command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def clean_up(record: Path) -> None:
    """Stop the run's processes, run the commands that undo the rest, and remove the record."""
    entries = []
    if (record / "entries").exists():
        # The last line of a killed run may be incomplete.
        for line in (record / "entries").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
    end_processes(record.name, {entry["folder"] for entry in entries if "folder" in entry})
    done = {entry["done"] for entry in entries if "done" in entry}
    for entry in reversed(entries):
        if "command" in entry and entry["key"] not in done:
            command = entry["command"]
            print("$", *command, flush=True)
            try:
                subprocess.run(command, cwd=ROOT, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL, check=True)
            except (OSError, subprocess.SubprocessError) as error:
                print(error, flush=True)
    shutil.rmtree(record, ignore_errors=True)


def end_processes(name: str, folders: Iterable[str]) -> None:
    """SIGTERM, a pause, then SIGKILL until none is left, because a supervisor may restart a server in between."""
    for which in (signal.SIGTERM, signal.SIGKILL):
        for pid in members(name, folders):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, which)
        deadline = time.monotonic() + GRACE_SECONDS
        while left := members(name, folders):
            if time.monotonic() > deadline:
                break
            if which is signal.SIGKILL:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, which)
            time.sleep(0.05)


def members(name: str, folders: Iterable[str]) -> list[int]:
    """Pids of processes with the run's mark, and of servers and supervisors whose state is in one of the folders."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and is_member(pid, name, tuple(folders))]


def is_member(pid: int, name: str, folders: tuple[str, ...]) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        argv = [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return False
    for word in environ:
        key, _, value = os.fsdecode(word).partition("=")
        if key == MARK and name in value.split(":"):
            return True
        if key == STATE_MARKER and below(value, folders):
            return True
    return any(word.endswith("/supervisord.conf") and below(word, folders) for word in argv)


def below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


if __name__ == "__main__":
    reap(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
