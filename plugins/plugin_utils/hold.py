# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Take the run lock of a host, waiting for the run that holds it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.text import clean_text
from ansible_collections.magi.llama.plugins.plugin_utils.events import event, timestamp
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import has_ended, other_name, this_run

POLL_SECONDS = 2.0
# So often a run that waits says so.
EVENT_SECONDS = 10.0


class _Waiting:
    """What is reported while a run waits: at once, every ten seconds, when the holder changes, and at the end."""

    def __init__(self, task_vars: dict[str, Any]) -> None:
        self._task_vars = task_vars
        self._began = time.monotonic()
        self._since = ""
        self._holder = ""
        self._next = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def goes_on(self, holder: str) -> None:
        """The run waits for this one."""
        if holder != self._holder:
            show(self._task_vars, [f"      waiting for another run on this host: {holder}"])
            self._holder, self._since, self._next = holder, self._since or timestamp(), self.seconds
        if self.seconds >= self._next:
            self._report(False)
            self._next = self.seconds + EVENT_SECONDS

    def is_over(self) -> None:
        """The run has the lock."""
        if self._holder:
            self._report(True)

    def _report(self, has_lock: bool) -> None:
        data = {"holder": self._holder, "since": self._since, "seconds": round(self.seconds, 1), "has_lock": has_lock}
        event(self._task_vars, "lock_waited", data)


def acquire_with_wait(
    action: HostAction,
    module: str,
    arguments: Mapping[str, Any],
    task_vars: dict[str, Any],
    wait: float,
    take_over: bool,
) -> dict[str, Any]:
    """Call a module that takes the host's lock until it succeeds; returns its last answer, failed if it never did.

    wait is the number of seconds to wait for another run; with take_over there is no waiting.
    """
    filled_in: dict[str, Any] = {"run": this_run(task_vars["inventory_hostname"])}
    waiting = _Waiting(task_vars)
    while True:
        answer: dict[str, Any] = action.ask(module, fill_in(arguments, **filled_in), task_vars)
        holder = answer.get("holder")
        if not holder or action._task.check_mode:
            if not answer.get("failed"):
                waiting.is_over()
            return answer
        twin = other_name(holder, filled_in["run"])
        if twin is not None:
            return {**answer, "failed": True, "msg": _refusal_of_twin(task_vars["inventory_hostname"], twin)}
        if filled_in.get("dead") != holder["id"] and (take_over or has_ended(holder)):
            filled_in["dead"] = holder["id"]
            continue
        waited = waiting.seconds
        if waited >= wait:
            return {**answer, "failed": True, "msg": _refusal(holder, wait)}
        waiting.goes_on(str(holder["text"]))
        time.sleep(min(POLL_SECONDS, wait - waited))


def _refusal_of_twin(name: str, twin: str) -> str:
    return (
        f"{name} and {clean_text(twin)} are one machine with one state directory, which this run is changing under the "
        f"other name. Nothing was changed as {name}. Keep one of the two names in the inventory, or give {name} a "
        "servers_state_dir of its own."
    )


def _refusal(holder: dict[str, Any], waited: float) -> str:
    after = f" after {waited:g} s" if waited else ""
    return (
        f"Another run is still changing this host{after}: {holder['text']}. Nothing was changed; run again when it is "
        f"over. If it is not running any more, its lock expires in {holder['seconds_left']:.0f} s; "
        "-e servers_lock_take_over=true takes it at once."
    )
