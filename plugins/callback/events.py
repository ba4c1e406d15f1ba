# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports plays, tasks, failures and the end of a run as events; what tasks themselves report is in plugin_utils."""

from __future__ import annotations

DOCUMENTATION = r"""
name: events
type: notification
short_description: Report a run as typed JSON lines
version_added: 0.1.0
author: The magi.llama developers (@magi-llama)
description:
  - Reports what a run does, while it does it, as JSON documents in the file or the Redis stream that the environment
    variable E(MAGI_EVENTS) names. Without that variable it does nothing.
  - The playbooks of this collection load it by themselves. In other playbooks that use its roles and modules, enable it
    with E(ANSIBLE_CALLBACKS_ENABLED).
  - C(docs/events.md) of the collection describes every event, C(docs/schemas/event.schema.json) is their JSON Schema.
requirements:
  - The Python package C(redis) on the controller, for a Redis stream only.
notes:
  - E(MAGI_EVENTS) is the path of a file, to which events are appended, or a URL such as V(redis://localhost:6379/0).
    E(MAGI_EVENTS_PASSWORD_FILE) names a file with the password of a Redis. E(MAGI_RUN_ID) is the id of the run, by
    default a new UUID.
"""

import atexit
import contextlib
import getpass
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible.utils.vars import load_extra_vars
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text
from ansible_collections.magi.llama.plugins.plugin_utils.event_sinks import SinkError
from ansible_collections.magi.llama.plugins.plugin_utils.events import Reporter, begin, fail
from ansible_collections.magi.llama.plugins.plugin_utils.vault_values import without_vault_values

INTERRUPTED = 99
RETRY_SECONDS = 0.02
HIDDEN = "The result is hidden, as no_log is set."


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Sends the events of plays and tasks, and the last event of the run however it ends."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "magi.llama.events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._reporter: Reporter | None = None
        self._play: Any = None
        self._tasks = 0
        self._hosts: dict[str, dict[str, int]] = {}
        self._rc: int | None = None

    def v2_playbook_on_start(self, playbook: Any) -> None:
        # Called for each playbook of a command line.
        if self._reporter is not None:
            return
        self._reporter = begin()
        if self._reporter is None:
            # MAGI_EVENTS is unset or wrong, or this plugin is loaded twice: by the playbook, and as enabled.
            self.disabled = True
            return
        try:
            self._reporter.first("run_started", _run(playbook))
        except SinkError as error:
            fail(str(error))
            self.disabled = True
            return
        _at_end(self._end)
        _chain(signal.SIGINT, self._interrupted)
        _chain(signal.SIGTERM, self._terminated)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = play
        inventory = play.get_variable_manager()._inventory
        hosts = [host.name for host in inventory.get_hosts(play.hosts, order=play.order)]
        self._write("play_started", {"name": str(play.get_name()), "hosts": hosts})

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._tasks += 1
        self._write("task_started", {"name": str(task.get_name()), "number": self._tasks})

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._count(result, "ok")
        if result.result.get("changed"):
            self._count(result, "changed")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._count(result, "ok" if ignore_errors else "failed")
        found = result.result
        data = {"task": str(result.task.get_name()), "msg": self._message(result), "fix": found.get("fix")}
        self._write("task_failed", data, result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._count(result, "unreachable")
        self._write("unreachable", {"msg": self._message(result)}, result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        # The last ones are those of the whole run. The exit code follows from them as in PlaybookExecutor.
        counts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        self._hosts = {
            host: {
                **{"ok": count["ok"], "changed": count["changed"]},
                **{"failed": count["failures"], "unreachable": count["unreachable"]},
            }
            for host, count in counts.items()
        }
        self._rc = 4 if stats.dark else 2 if stats.failures else 0

    def _message(self, result: Any) -> str:
        """Return why a task failed."""
        manager = self._play.get_variable_manager()
        variables = manager.get_vars(play=self._play, host=result.host, task=result.task)
        return without_vault_values(_message(result.result), variables, manager._loader)

    def _write(self, kind: str, data: dict[str, Any], result: Any = None) -> None:
        if self._reporter is not None:
            about = {} if result is None else {"host": result.host.get_name(), "check": bool(result.task.check_mode)}
            self._reporter.write(kind, data, **about)

    def _count(self, result: Any, what: str) -> None:
        """Count results for a run that is interrupted, whose stats no callback is given."""
        counts = self._hosts.setdefault(result.host.get_name(), {"ok": 0, "changed": 0, "failed": 0, "unreachable": 0})
        counts[what] += 1

    def _interrupted(self, proceed: Callable[[], None]) -> None:
        """Ansible ends the run, and the last event comes when its process ends. A second INT ends that at once."""
        self._rc = INTERRUPTED
        try:
            proceed()
        finally:
            _chain(signal.SIGINT, self._terminated)

    def _terminated(self, proceed: Callable[[], None]) -> None:
        """The process ends within the handler of the signal."""

        def end() -> None:
            self._end()
            proceed()

        self._rc = self._rc or 128 + signal.SIGTERM
        # Not within a write of this process, which would be cut off.
        if self._reporter is not None:
            self._reporter.after_write(end)
        else:
            proceed()

    def _end(self) -> None:
        reporter, self._reporter = self._reporter, None
        if reporter is not None:
            reporter.last("run_ended", {"rc": self._rc, "hosts": self._hosts})


def _run(playbook: Any) -> dict[str, Any]:
    """The data of the event run_started."""
    given = context.CLIARGS
    profile = load_extra_vars(playbook._loader).get("profile", os.environ.get("MAGI_PROFILE") or None)
    limit = given.get("subset")
    return {
        "playbook": " ".join(Path(str(name)).name for name in given.get("args") or ()),
        "profile": profile if profile is None else str(profile),
        "check": bool(given.get("check")),
        "limit": limit if limit is None else str(limit),
        "controller": socket.gethostname(),
        "user": getpass.getuser(),
    }


def _message(found: Any) -> str:
    """Return why a task failed; of a loop, why its first failed item did."""
    if found.get("censored") or found.get("_ansible_no_log"):
        return HIDDEN
    items = [item for item in found.get("results") or () if isinstance(item, dict) and item.get("failed")]
    part = items[0] if items else found
    if part.get("censored"):
        return HIDDEN
    return visible_text(str(part.get("msg") or found.get("msg") or "").strip())


def _at_end(end: Callable[[], None]) -> None:
    """Call a function when this process ends, and not when one ends that was forked from it."""
    own = os.getpid()
    atexit.register(lambda: end() if os.getpid() == own else None)


def _is_forking(frame: Any) -> bool:
    """Whether a signal has come within one of the functions that Python calls right after it has started a worker."""
    while frame is not None:
        if frame.f_code.co_name == "_launch" and frame.f_code.co_filename.endswith("popen_fork.py"):
            return True
        frame = frame.f_back
    return False


def _chain(number: signal.Signals, handle: Callable[[Callable[[], None]], None]) -> None:
    """Call a function for a signal to this process, with what the signal did before."""
    own, previous = os.getpid(), signal.getsignal(number)

    def handler(signum: int, frame: Any) -> None:
        def proceed() -> None:
            signal.signal(signum, previous or signal.SIG_DFL)
            if callable(previous):
                previous(signum, frame)
            else:
                os.kill(os.getpid(), signum)

        if os.getpid() == own and _is_forking(frame):
            # Python ignores what is raised there, and the run would continue. A moment later it is not there any more.
            threading.Timer(RETRY_SECONDS, os.kill, (own, signum)).start()
        elif os.getpid() == own:
            handle(proceed)
        else:
            proceed()

    # Only the main thread of a process may do it.
    with contextlib.suppress(ValueError):
        signal.signal(number, handler)
