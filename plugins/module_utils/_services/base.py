# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The interface of a service manager: the status of servers, and what can be done to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .._core.errors import MagiError
from .._core.processes import Process, all_processes

# A server gets its stop time-out and then SIGKILL; one that takes longer hangs in the kernel.
STOP_MARGIN = 15.0
DEFAULT_STOP_TIMEOUT = 30.0


class ServiceError(MagiError):
    """A service manager that does not do what it is asked."""


@dataclass(frozen=True)
class ServiceStatus:
    """A server as its manager sees it.

    state: running, starting (its process is being made), restarting (it died and will be tried again), stopping,
    stopped, failed (it died and will not be tried again), absent (the manager does not know it).
    exit_code is 128 + n for a process that signal n ended. restarts counts those since it was started on purpose.
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


@dataclass(frozen=True)
class Stopped:
    """How a server ended: by which signal, None where it did not run, and after how many seconds."""

    name: str
    pid: int | None
    signal: str | None
    seconds: float


def at_once(_name: str) -> None:
    """The pace of starts of which none waits for another."""


class ServiceDriver(Protocol):
    """What starts and stops servers, all of it in bulk: one call for any number of servers."""

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        """Each server's status."""

    def reload(self, names: Sequence[str]) -> None:
        """Read changed launch configs, leaving servers that run alone; names are all that are deployed."""

    def start(self, names: Sequence[str], on_started: Callable[[str], None] = at_once) -> dict[str, str]:
        """Start servers after a reload, without waiting until they are ready; an error for each that cannot be.

        on_started is called with each once it is started and before the next is: it sets the pace.
        """

    def stop(self, names: Sequence[str], timeout: float) -> dict[str, Stopped]:
        """Stop servers at the same time: SIGTERM, their deadline (at most timeout), SIGKILL."""

    def forget(self, names: Sequence[str]) -> None:
        """Drop stopped servers whose launch configs are gone."""

    def shutdown_if_idle(self) -> bool:
        """Stop the processes that exist only to run servers if no server is left; returns whether it did."""

    def log_tail(self, name: str, lines: int) -> list[str]:
        """The last lines that a server wrote."""


def exit_text(code: int | None) -> str | None:
    """A human-readable exit code: exit code 1, killed by SIGKILL."""
    if code is None:
        return None
    # Codes above the signals' are the program's or systemd's own.
    return f"killed by {signal_name(code - 128)}" if 128 < code <= 128 + signal.SIGRTMAX else f"exit code {code}"


def signal_name(number: int) -> str:
    """SIGTERM for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ended_text(signals: Mapping[str, str]) -> str:
    """How servers ended, human-readable: 4 servers stopped (1 by SIGKILL: a); empty if none did."""
    if not signals:
        return ""
    others = sorted({number for number in signals.values() if number != "SIGTERM"})
    named = {number: sorted(name for name in signals if signals[name] == number) for number in others}
    more = "; ".join(f"{len(names)} by {number}: {', '.join(names)}" for number, names in named.items())
    return f"{len(signals)} server{'s' if len(signals) > 1 else ''} stopped{f' ({more})' if more else ''}"


def strays(state_dir: str, statuses: Mapping[str, ServiceStatus], proc: str = "/proc") -> list[Process]:
    """Processes of these servers that their manager does not know: one that died or was replaced left them behind."""
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
    """End our own processes by PID, all at the same time: SIGTERM, the deadline, SIGKILL."""
    began = clock()
    waiting = {process.pid: process for process in processes}
    ended: dict[int, Stopped] = {}
    used = signal.SIGTERM
    for pid in waiting:
        _send(pid, state_dir, used)
    while waiting:
        alive = {process.pid for process in all_processes(state_dir, pids=list(waiting))}
        for pid in [pid for pid in waiting if pid not in alive]:
            ended[pid] = Stopped(waiting.pop(pid).name, pid, used.name, round(clock() - began, 3))
        passed = clock() - began
        if waiting and passed > timeout + STOP_MARGIN:
            raise ServiceError(
                f"Processes {sorted(waiting)} do not end, not even by SIGKILL: look at the host's kernel log."
            )
        if waiting and passed > timeout and used is signal.SIGTERM:
            used = signal.SIGKILL
            for pid in waiting:
                _send(pid, state_dir, used)
        if waiting:
            sleep(0.05)
    return ended


def _send(pid: int, state_dir: str, number: signal.Signals) -> None:
    # Looked at once more right before: the number may belong to another process by now.
    if all_processes(state_dir, pids=[pid]):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise ServiceError(f"Process {pid} belongs to another user: run with --become.") from error
