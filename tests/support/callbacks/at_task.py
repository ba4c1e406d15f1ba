# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills a run at the start of task MAGI_AT_TASK, a number or a part of its name, or records the host's state at each
task (MAGI_NOTES).

MAGI_NOW is a file that gets the name of the current task, for the connection plugin flaky.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible_collections.magi.llama.plugins.module_utils._core.processes import all_processes

DOCUMENTATION = """
name: at_task
type: notification
short_description: Kills a run at a task
description: For tests only.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "at_task"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._at(task)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._at(task)

    def _at(self, task: Any) -> None:
        self._count += 1
        if "MAGI_NOTES" in os.environ:
            with open(os.environ["MAGI_NOTES"], "a", encoding="utf-8") as stream:
                stream.write(json.dumps([task.get_name(), host_state(Path(os.environ["MAGI_STATE"]))]) + "\n")
        if "MAGI_NOW" in os.environ:
            Path(os.environ["MAGI_NOW"]).write_text(task.get_name(), encoding="utf-8")
        last = os.environ.get("MAGI_AT_TASK", "0")
        if self._count == int(last) if last.isdigit() else last in task.get_name():
            os.killpg(0, signal.SIGKILL)


def host_state(state_dir: Path) -> str:
    """A digest of what a run may have changed: processes, and files of the state directory except locks and logs."""
    digest = hashlib.sha256()
    for path in sorted(state_dir.rglob("*")):
        if path.is_file() and path.suffix not in (".lock", ".log"):
            digest.update(f"{path} {path.read_bytes()!r}".encode())
    for process in sorted(all_processes(str(state_dir)), key=lambda process: process.pid):
        digest.update(f"{process.pid} {process.argv} {process.env}".encode())
    return digest.hexdigest()
