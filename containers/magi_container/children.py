# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that a container keeps running, until it is to stop."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from .logs import show

# A program that ends is started again after that many seconds, which double with every end within a minute.
FIRST_DELAY, LONGEST_DELAY, STEADY_SECONDS = 1.0, 30.0, 60.0
END_SECONDS = 10.0


def stop_requested() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    event = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        event.set()

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)
    return event


def next_delay(delay: float, ran_seconds: float) -> float:
    """How long to wait before the next start of a program that ran for so many seconds."""
    return FIRST_DELAY if ran_seconds >= STEADY_SECONDS else min(2 * delay, LONGEST_DELAY)


class Child:
    """A program that is started again when it ends, in a thread of its own."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name, self._command, self._environment = name, list(command), dict(environment)
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_restarted = False
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def restart(self) -> None:
        """End the program; it is started again at once."""
        self._is_restarted = True
        if self._process is not None:
            end(self._process, END_SECONDS)

    def end(self, seconds: float = END_SECONDS) -> None:
        """End the program: SIGTERM, and SIGKILL after so many seconds."""
        self._ended.set()
        if self._process is not None:
            end(self._process, seconds)
        if self._thread.is_alive():
            self._thread.join(timeout=seconds)

    def _keep(self) -> None:
        delay = FIRST_DELAY
        while not self._ended.is_set():
            began = time.monotonic()
            self._process = subprocess.Popen(self._command, env=self._environment, stdin=subprocess.DEVNULL)
            code = self._process.wait()
            if self._ended.is_set():
                return
            if self._is_restarted:
                self._is_restarted, delay = False, FIRST_DELAY
                continue
            show(f"{self._name} has ended ({ended_by(code)}); it is started again in {delay:g} s")
            self._ended.wait(delay)
            delay = next_delay(delay, time.monotonic() - began)


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def ended_by(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal {-code}"


def run_until(command: Sequence[str], environment: Mapping[str, str], stop: threading.Event) -> int | None:
    """Run a command to its end and return its exit status; interrupt it, and return None, when the event is set."""
    process = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL)
    while not stop.wait(0.2):
        if (code := process.poll()) is not None:
            return code
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    return None


def wait_for(is_so: Callable[[], bool], seconds: float, stop: threading.Event) -> bool:
    """Whether something becomes so within so many seconds, and before the event is set."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline or stop.wait(0.3):
            return False
    return True
