# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints one JSON document at the end, like the callback json of the collection ansible.posix."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: whole_json
type: stdout
short_description: Prints one JSON document
description: For tests only.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "whole_json"

    def __init__(self) -> None:
        super().__init__()
        self._tasks: list[dict[str, Any]] = []

    def _add(self, result: Any, **_options: Any) -> None:
        kept = json.loads(self._dump_results(result._result, indent=0, sort_keys=False))
        self._tasks.append({"host": result._host.get_name(), "task": result._task.get_name(), "result": kept})

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_unreachable = _add

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._display.display(json.dumps({"tasks": self._tasks, "hosts": sorted(stats.processed)}))
