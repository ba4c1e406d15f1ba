# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the times of a run's tasks to the file in BENCH_TASK_TIMES, and a byte for each module call to another one."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_times
type: aggregate
short_description: Write the times of the tasks
description:
  - Writes name, start and end of each task, in seconds since the epoch, to the file in BENCH_TASK_TIMES.
  - Appends a byte to the file in BENCH_MODULE_CALLS for each call of a module on a host.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "task_times"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._begun: list[tuple[str, float]] = []
        count_module_calls()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._begun.append((task.get_name(), time.time()))

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._begun.append((task.get_name(), time.time()))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        ends = [begin for _name, begin in self._begun[1:]] + [time.time()]
        tasks = [(name, begin, end) for (name, begin), end in zip(self._begun, ends, strict=True)]
        with open(os.environ["BENCH_TASK_TIMES"], "w", encoding="utf-8") as stream:
            json.dump(tasks, stream)


def count_module_calls() -> None:
    """The processes that handle tasks are forks of this one, so they count too."""
    execute = ActionBase._execute_module

    def counted(self: ActionBase, *arguments: Any, **more: Any) -> Any:
        with open(os.environ["BENCH_MODULE_CALLS"], "ab") as stream:
            stream.write(b".")
        return execute(self, *arguments, **more)

    ActionBase._execute_module = counted
