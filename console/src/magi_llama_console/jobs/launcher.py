# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the process of a job, says whether it runs, and cancels it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import runner
from .runner import CANNOT_START, identity, kill_tree, write_once

RUNNER = Path(runner.__file__)
# A runner that has not claimed its folder so long after it was started will not.
START_SECONDS = 60.0
# Claims a folder for no process.
NO_PROCESS = {"pid": 0, "started": 0, "boot_id": ""}


class LaunchError(Exception):
    """The process of a job could not be started. The text says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the process of a job ended. rc is None if nothing is known of it, as after a power cut."""

    rc: int | None
    is_cancelled: bool = False
    ended_at: str | None = None


class Launcher(Protocol):
    """How processes of jobs are started. All else is the same for all: files in the folder, and signals."""

    async def start(self, folder: Path) -> None:
        """Start the runner of a folder with request.json. To do it twice is harmless: the second one ends at once.

        Raises LaunchError.
        """


class SessionLauncher:
    """A process in a session of its own: it outlives the console where nothing ends the console's other processes."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    async def start(self, folder: Path) -> None:
        # Those that have ended are reaped.
        self._started = [one for one in self._started if one.poll() is None]
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", str(RUNNER), str(folder)],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # A defect of the runner is in the console's log.
                stderr=None,
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(f"the process of the job cannot be started: {error.strerror}") from error
        self._started.append(process)


class UnitLauncher:
    """A template unit of systemd, such as magi-llama-console-job@.service, started with the job's id.

    Its ExecStart is `python -I …/jobs/runner.py DATA/jobs/%i`, as the console's user, which needs a rule of polkit to
    start it. Its Environment has what the console's has, and ANSIBLE_VAULT_PASSWORD_FILE=%d/NAME for a credential.
    """

    def __init__(self, unit: str) -> None:
        self._before, _, self._after = unit.partition("@")

    async def start(self, folder: Path) -> None:
        name = f"{self._before}@{folder.name}{self._after}"
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            "start",
            "--no-ask-password",
            name,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        errors = (await process.communicate())[1].decode(errors="replace").strip()
        if process.returncode:
            raise LaunchError(f"systemctl start {name}: {errors or f'exit status {process.returncode}'}")


def read(path: Path) -> dict[str, Any] | None:
    """A file that the runner writes once; None if it is not there."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def is_alive(process: dict[str, Any]) -> bool:
    """Whether this very process runs: not a later one with its pid, and not a zombie."""
    try:
        if identity(process["pid"]) != process:
            return False
        stat = Path(f"/proc/{process['pid']}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def state(folder: Path) -> Ended | None:
    """How the job of a folder ended; None while it runs or is about to."""
    process = read(folder / "pid")
    if process is None:
        return None
    is_gone = not is_alive(process)
    if process == NO_PROCESS:
        return Ended(CANNOT_START)
    # After the look at the process: it writes rc, and ends.
    if found := read(folder / "rc"):
        return Ended(found["rc"], found["cancelled"], found["ended_at"])
    if not is_gone or _session(process):
        return None
    return Ended(None)


def give_up(folder: Path) -> bool:
    """Claim the folder of a job whose runner has not come, if none has by now: a late one then ends at once."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return write_once(folder / "pid", NO_PROCESS)


def is_overdue(folder: Path) -> bool:
    """Whether no runner has claimed the folder of a job that was started, and none is to be expected any more."""
    if (folder / "pid").exists():
        return False
    try:
        return time.time() - (folder / "request.json").stat().st_mtime > START_SECONDS
    except FileNotFoundError:
        return True


def cancel(folder: Path) -> None:
    """Have the runner end its command (INT, TERM, KILL). If the runner was killed, end what it has left at once.

    Nothing is done as long as it has not begun, so this is called until the job has ended: repeats are ignored.
    """
    process = read(folder / "pid")
    if process is None:
        return
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], signal.SIGINT)
        return
    for pid in _session(process):
        kill_tree(pid)


def _session(process: dict[str, Any]) -> list[int]:
    """What runs in the session of a runner that is gone: its command, if it was killed alone."""
    try:
        boot = identity(os.getpid())["boot_id"]
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    if boot != process["boot_id"]:
        return []
    found = []
    for name in names:
        with contextlib.suppress(OSError, IndexError, ValueError):
            stat = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
            fields = stat.rpartition(")")[2].split()
            is_of_session = int(fields[3]) == process["pid"] and int(fields[19]) >= process["started"]
            if is_of_session and fields[0] not in ("Z", "X"):
                found.append(int(name))
    return found
