# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The interface of a service driver: the status of servers, and starting and stopping them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .._core.errors import MagiError
from .._core.moments import iso_time
from .._core.processes import Process, all_processes
from .._core.stopping import first_wait_seconds
from .._core.text import visible_line
from .server_log import plain_lines

# Seconds after the stop time-out, when SIGKILL is sent. A process that takes longer hangs in the kernel.
STOP_MARGIN = 15.0
DEFAULT_STOP_TIMEOUT = 30.0
# What ends a stuck stop: the server did not end after one SIGTERM.
SECOND_SIGTERM = "second SIGTERM"
STUCK = (SECOND_SIGTERM, "SIGKILL")


class ServiceError(MagiError):
    """Raised when a service manager fails or is unavailable."""


@dataclass(frozen=True)
class ServiceStatus:
    """A server's status according to its service manager.

    state: running, starting (its process is being created), restarting (it died and will be restarted), stopping,
    stopped, sleeping (the first request starts it; with an exit_text, its last start or process failed), failed (it
    died and will not be restarted), absent (the manager does not know it).
    exit_code is 128 + n if signal n ended the process. restarts counts restarts since the last deliberate start.
    """

    name: str
    state: str
    pid: int | None = None
    exit_code: int | None = None
    exit_text: str | None = None
    restarts: int = 0

    @property
    def is_alive(self) -> bool:
        return self.state in ("running", "starting", "stopping")

    @property
    def is_up(self) -> bool:
        """Whether it has a process, or a socket that starts one."""
        return self.is_alive or self.state == "sleeping"


@dataclass(frozen=True)
class Stopped:
    """How a server ended, and the seconds that it took.

    signal is None if it was not running; the stop was stuck if it is one of STUCK.
    """

    name: str
    pid: int | None
    signal: str | None
    seconds: float


@dataclass(frozen=True)
class LogLine:
    """A line of a server's log, visible and cut; at is when it was logged (ISO 8601, UTC), None if that is unknown."""

    text: str
    at: str | None = None


def logged_line(text: str, moment: float | None = None) -> LogLine:
    """Return a line as people may see it; moment is in seconds since the epoch."""
    return LogLine(visible_line(text), None if moment is None else iso_time(moment))


def at_once(_name: str) -> None:
    """An on_started callback that does not wait between starts."""


class ServiceDriver(Protocol):
    """Starts and stops servers in bulk: one call handles any number of servers."""

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        """Return each server's status, by name."""

    def reload(self, names: Sequence[str]) -> None:
        """Read changed launch configs without touching running servers; names are all deployed servers."""

    def start(self, names: Sequence[str], on_started: Callable[[str], None] = at_once) -> dict[str, str]:
        """Start servers after a reload, without waiting until they are ready; returns errors by name.

        on_started is called after each start and before the next, so it can delay the next start.
        """

    def stop(self, names: Sequence[str], timeout: float) -> dict[str, Stopped]:
        """Stop servers in parallel: SIGTERM, SIGTERM again, SIGKILL after their deadline, timeout seconds at most."""

    def forget(self, names: Sequence[str]) -> None:
        """Drop stopped servers whose launch configs were removed."""

    def shutdown_if_idle(self) -> bool:
        """If no server is left, stop the processes that exist only to run servers; returns whether it did."""

    def log_tail(self, name: str, lines: int) -> list[str]:
        """Return the last messages of a server since its last deliberate start, also of processes that crashed."""

    def logs(self, names: Sequence[str], lines: int, since: float | None = None) -> dict[str, list[LogLine]]:
        """Return the last lines of servers' logs, of any of their processes, by name.

        since, in seconds since the epoch, leaves out what was logged before. A log without times may have more.
        """

    def start_logs(self, pids: Mapping[str, int]) -> dict[str, list[str]]:
        """Return the lines that servers have logged since the start of these processes, as they are, by name.

        For servers that have started just now: of a long log, lines are missing.
        """


def log_lines(text: str, count: int) -> list[str]:
    """Return the last lines of a log, each cut and visible: servers and their models decide what is in it."""
    return [visible_line(line) for line in plain_lines(text.split("\n")) if line.strip()][-count:]


def exit_text(code: int | None) -> str | None:
    """Return a human-readable exit code: exit code 1, killed by SIGKILL."""
    if code is None:
        return None
    # Codes above the signal range come from the program or from systemd.
    return f"killed by {signal_name(code - 128)}" if 128 < code <= 128 + signal.SIGRTMAX else f"exit code {code}"


def signal_name(number: int) -> str:
    """Return a signal's name: SIGTERM for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ended_text(signals: Mapping[str, str]) -> str:
    """Return a human-readable summary: 4 servers stopped (1 by SIGKILL: a); empty if none stopped."""
    if not signals:
        return ""
    others = sorted({number for number in signals.values() if number != "SIGTERM"})
    named = {number: sorted(name for name in signals if signals[name] == number) for number in others}
    more = "; ".join(f"{len(names)} by {number}: {', '.join(names)}" for number, names in named.items())
    return f"{len(signals)} server{'s' if len(signals) > 1 else ''} stopped{f' ({more})' if more else ''}"


def strays(state_dir: str, statuses: Mapping[str, ServiceStatus], proc: str = "/proc") -> list[Process]:
    """Return processes of these servers that their manager does not track, left by a dead or replaced manager."""
    return [
        process
        for process in all_processes(state_dir, proc)
        if process.name in statuses and process.pid != statuses[process.name].pid
    ]


def terminate(
    processes: Iterable[Process],
    state_dir: str,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[int, Stopped]:
    """End managed processes by PID, in parallel: SIGTERM, again SIGTERM, and SIGKILL after timeout seconds."""
    began = clock()
    waiting = {process.pid: process for process in processes}
    ended: dict[int, Stopped] = {}
    used = signal.SIGTERM.name
    for pid in waiting:
        _send(pid, state_dir, signal.SIGTERM)
    while waiting:
        alive = {process.pid for process in all_processes(state_dir, pids=list(waiting))}
        for pid in [pid for pid in waiting if pid not in alive]:
            ended[pid] = Stopped(waiting.pop(pid).name, pid, used, round(clock() - began, 3))
        passed = clock() - began
        if waiting and passed > timeout + STOP_MARGIN:
            raise ServiceError(
                f"Processes {sorted(waiting)} did not end, not even after SIGKILL: check the host's kernel log."
            )
        if passed > timeout and used != "SIGKILL":
            used = signal.SIGKILL.name
            for pid in waiting:
                _send(pid, state_dir, signal.SIGKILL)
        elif passed > min(timeout, first_wait_seconds(timeout)) and used == "SIGTERM":
            used = SECOND_SIGTERM
            for pid in waiting:
                _send(pid, state_dir, signal.SIGTERM)
        if waiting:
            sleep(0.05)
    return ended


def _send(pid: int, state_dir: str, number: signal.Signals) -> None:
    # Check again right before the signal: the PID may have been reused.
    if all_processes(state_dir, pids=[pid]):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise ServiceError(f"Process {pid} belongs to another user: run with --become.") from error
