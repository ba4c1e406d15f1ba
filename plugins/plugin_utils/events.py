# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Report what a run does as events, one JSON document each, to the file or Redis that MAGI_EVENTS names.

The callback magi.llama.events opens the sink in the main process of Ansible; the worker processes of tasks inherit it.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from ansible import context
from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_line, visible_value
from ansible_collections.magi.llama.plugins.module_utils._output.event import EVENT, RUN_ID
from ansible_collections.magi.llama.plugins.plugin_utils.event_sinks import VARIABLE, Sink, SinkError, open_sink

RUN_ID_VARIABLE = "MAGI_RUN_ID"
# How long a sink that failed is left alone: until then a run does not wait for it again.
PAUSE_SECONDS = 30.0
_SHARED = struct.Struct("<qd")
# In place of a number: the last event has been written.
CLOSED = -1


def timestamp() -> str:
    """The time as events have it: RFC 3339 in UTC, to the millisecond."""
    now = datetime.now(timezone.utc)
    return f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"


class _Shared:
    """What the processes of a run share: the number of the last event, and until when the sink is left alone.

    It is in a file without a name. A record lock on it ends with the process that holds it, however that ends; it does
    not hold up other threads, so events come from the main thread only.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.write(0, 0.0)

    @contextmanager
    def locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self._file.close()

    def read(self) -> tuple[int, float]:
        number, until = _SHARED.unpack(os.pread(self._file.fileno(), _SHARED.size, 0))
        return number, until

    def write(self, number: int, until: float) -> None:
        os.pwrite(self._file.fileno(), _SHARED.pack(number, until), 0)


class Reporter:
    """Numbers the events of a run and writes them, one after another, from whichever process they come."""

    def __init__(self, run: str, sink: Sink) -> None:
        self.run = run
        self._sink = sink
        self._shared = _Shared()
        self._is_busy = False
        self._postponed: list[Callable[[], None]] = []

    def first(self, kind: str, data: Mapping[str, Any]) -> None:
        """Write the first event. Raises SinkError, as nothing has been changed yet."""
        with self._shared.locked():
            self._sink.write(self._line(1, kind, data, None, None))
            self._shared.write(1, 0.0)

    def write(self, kind: str, data: Mapping[str, Any], host: str | None = None, check: bool | None = None) -> None:
        """Write an event. Where the sink fails there is one warning, and numbers are missing in what it has."""
        self._is_busy = True
        try:
            with self._shared.locked():
                warning = self._write(kind, data, host, check)
        finally:
            self._is_busy = False
        if warning:
            Display().warning(warning)
        while self._postponed:
            self._postponed.pop(0)()

    def last(self, kind: str, data: Mapping[str, Any]) -> None:
        """Write the last event: what a worker process reports after it is left out."""
        self.write(kind, data)
        with self._shared.locked():
            self._shared.write(CLOSED, 0.0)

    def after_write(self, then: Callable[[], None]) -> None:
        """Call a function at once, or at the end of the write that a signal has interrupted."""
        if self._is_busy:
            self._postponed.append(then)
        else:
            then()

    def close(self) -> None:
        """Give up what the processes share; the sink is left as it is."""
        self._shared.close()

    def _write(self, kind: str, data: Mapping[str, Any], host: str | None, check: bool | None) -> str | None:
        number, until = self._shared.read()
        if number == CLOSED:
            return None
        number += 1
        if until > time.monotonic():
            self._shared.write(number, until)
            return None
        try:
            self._sink.write(self._line(number, kind, data, host, check))
        except SinkError as error:
            self._shared.write(number, time.monotonic() + PAUSE_SECONDS)
            # Until is 0 before the first failure.
            return None if until else f"{error} The run continues; some of its events are missing."
        self._shared.write(number, until)
        return None

    def _line(self, number: int, kind: str, data: Mapping[str, Any], host: str | None, check: bool | None) -> bytes:
        content = {
            "at": timestamp(),
            "run": self.run,
            "seq": number,
            "type": kind,
            "check": _is_checked() if check is None else check,
            **({} if host is None else {"host": visible_line(str(host))}),
            "data": visible_value(data),
        }
        # What JSON has no form for, such as a value of a vault that was not decrypted, is not shown.
        return json.dumps(EVENT.stamp(content), separators=(",", ":"), default=lambda _value: "…").encode() + b"\n"


class _Process:
    """This process's part: the run's reporter, why there is none, and whether its task only checks."""

    reporter: Reporter | None = None
    error: str | None = None
    is_check: bool | None = None


def begin() -> Reporter | None:
    """Open the sink that MAGI_EVENTS names, in the main process; None if it is unset or the run has begun already.

    An error is kept for the first task of the collection: what a callback raises ends no run.
    """
    value = os.environ.get(VARIABLE, "")
    if not value or _Process.reporter or _Process.error:
        return None
    run = os.environ.get(RUN_ID_VARIABLE) or str(uuid.uuid4())
    try:
        if not RUN_ID.fullmatch(run):
            raise SinkError(
                f"{RUN_ID_VARIABLE} is {visible_line(run)!r}: give up to 64 letters, digits, dots, dashes and "
                "underscores, beginning with a letter or digit."
            )
        _Process.reporter = Reporter(run, open_sink(value))
    except SinkError as error:
        fail(str(error))
    return _Process.reporter


def fail(error: str) -> None:
    """Refuse the tasks of the collection, since events that were asked for cannot be written."""
    _Process.reporter, _Process.error = None, error


def begin_task(is_check: bool) -> None:
    """Note whether the task of this worker process only checks. Raises AnsibleActionFail if there is no sink."""
    _Process.is_check = is_check
    if _Process.error:
        raise AnsibleActionFail(f"{_Process.error} Nothing was changed.")
    if os.environ.get(VARIABLE) and not _Process.reporter:
        Display().warning(
            f"{VARIABLE} is set, but this playbook does not load the callback: set "
            "ANSIBLE_CALLBACKS_ENABLED=magi.llama.events to have events of it."
        )


def event(task_vars: Mapping[str, Any] | None, kind: str, data: Mapping[str, Any]) -> None:
    """Report an event of a task, about its host; without task_vars about the run. Nothing without MAGI_EVENTS.

    kind and data are as in _output/event.py. Texts are made visible here.
    """
    if _Process.reporter is not None:
        host = None if task_vars is None else task_vars["inventory_hostname"]
        _Process.reporter.write(kind, data, host, _Process.is_check)


def _is_checked() -> bool:
    """Whether the run as a whole is in check mode."""
    return bool(context.CLIARGS.get("check"))
