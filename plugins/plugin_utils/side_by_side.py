# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Ask several hosts side by side from one task that is delegated to each of them.

Ansible handles the items of a loop one after another, so a slow host would hold up those after it. A loop that has
every host twice begins all questions first, each in a process of its own, and then collects the answers: all items of a
loop run in one process of Ansible's.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

# These run a program for each command. Others, of strategies with connections of their own, do not outlive a fork.
FORKABLE = "ansible.plugins.connection."
# Part of a loop's item: ask and wait, ask only, or wait only.
ALL, BEGIN, END = "all", "begin", "end"

Ask = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a question: its answer, or the text of a failure."""

    answer: Mapping[str, Any] | None = None
    unreachable: str | None = None
    failed: str | None = None

    def value(self) -> dict[str, Any]:
        """The answer. Raises AnsibleConnectionFailure or AnsibleActionFail, as the question did."""
        if self.unreachable is not None:
            raise AnsibleConnectionFailure(self.unreachable)
        if self.answer is None:
            raise AnsibleActionFail(self.failed or "The process that asked the host ended without an answer.")
        return dict(self.answer)


@dataclass(frozen=True)
class _Child:
    pid: int
    reader: int


_BEGUN: dict[str, _Child | Outcome] = {}


def begin(key: str, ask: Ask, *, connection: object) -> None:
    """Begin to ask under a key. Where the connection does not allow it, this waits for the answer."""
    if not type(connection).__module__.startswith(FORKABLE):
        _BEGUN[key] = _outcome(ask)
        return
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_child(ask, writer)
    os.close(writer)
    _BEGUN[key] = _Child(pid, reader)


def answer_of(key: str) -> dict[str, Any]:
    """Wait for the answer of what was begun. Raises AnsibleConnectionFailure or AnsibleActionFail."""
    begun = _BEGUN.pop(key)
    return (begun if isinstance(begun, Outcome) else _collect(begun)).value()


def _outcome(ask: Ask) -> Outcome:
    try:
        return Outcome(answer=ask())
    except AnsibleConnectionFailure as error:
        return Outcome(unreachable=str(error))
    except Exception as error:
        return Outcome(failed=str(error) or type(error).__name__)


def _run_child(ask: Ask, writer: int) -> None:
    """Ask and send the outcome; the process always ends here, as the rest of the task is its parent's."""
    status = 1
    try:
        # Ansible's own would end the parent.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with os.fdopen(writer, "wb") as stream:
            stream.write(pickle.dumps(_outcome(ask)))
        status = 0
    finally:
        os._exit(status)


def _collect(child: _Child) -> Outcome:
    with os.fdopen(child.reader, "rb") as stream:
        content = stream.read()
    os.waitpid(child.pid, 0)
    # Of a process of our own.
    outcome = pickle.loads(content) if content else Outcome()
    return outcome if isinstance(outcome, Outcome) else Outcome()
