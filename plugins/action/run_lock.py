# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits for other runs on a host, and says what this run is; the module of the same name documents it."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible_collections.magi.llama.plugins.action.report import show
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import LEASE_SECONDS, WAITING

MODULE = "magi.llama.run_lock"
POLL_SECONDS = 2.0


class ActionModule(ActionBase):
    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _result, checked = self.validate_argument_spec(
            argument_spec={
                # Of the host: a ~ is the home there, so it is not expanded here.
                "state_dir": {"type": "str", "required": True},
                "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
                "create": {"type": "bool", "default": True},
                **WAITING,
                "lease": {"type": "float", "default": LEASE_SECONDS},
            }
        )
        answer = hold(self, MODULE, self._task.args, task_vars, checked["wait"], checked["take_over"])
        return {**result, **answer}


def hold(
    action: ActionBase,
    module: str,
    arguments: Mapping[str, Any],
    task_vars: dict[str, Any],
    wait: float,
    take_over: bool,
) -> dict[str, Any]:
    """Call a module that takes the host's lock until it has it; its last answer, failed where it never did.

    wait are the seconds that another run is waited for, with take_over none.
    """
    arguments = {**arguments, "run": this_run()}
    began = time.monotonic()
    shown = False
    while True:
        answer: dict[str, Any] = action._execute_module(module, arguments, task_vars=task_vars)
        holder = answer.get("holder")
        if not holder or action._task.check_mode:
            return answer
        if arguments.get("dead") != holder["id"] and (take_over or has_ended(holder)):
            arguments["dead"] = holder["id"]
            continue
        waited = time.monotonic() - began
        if waited >= wait:
            return {**answer, "failed": True, "msg": _refusal(holder, wait)}
        if not shown:
            show(task_vars, [f"      waits for another run on this host: {holder['text']}"])
            shown = True
        time.sleep(min(POLL_SECONDS, wait - waited))


def _refusal(holder: dict[str, Any], waited: float) -> str:
    after = f" after {waited:g} s" if waited else ""
    return (
        f"Another run is still changing this host{after}: {holder['text']}. Nothing was touched; run again when it is "
        f"over. If it is not running any more, its lock expires in {holder['seconds_left']:.0f} s; "
        "-e servers_lock_take_over=true takes it at once."
    )


def this_run() -> dict[str, Any]:
    """What this run of ansible is: the process that the worker of this task was forked from."""
    pid = os.getppid()
    playbooks = context.CLIARGS.get("args") or ()
    # The program ansible has a pattern of hosts there.
    names = [] if isinstance(playbooks, str) else [Path(playbook).name for playbook in playbooks]
    return {
        "id": f"{_kernel()}/{pid}/{_started(pid)}",
        "controller": socket.gethostname(),
        "user": getpass.getuser(),
        "pid": pid,
        "playbook": " ".join(names) or Path(sys.argv[0]).name,
    }


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether the run was on this very controller and its process is gone; elsewhere nobody can tell."""
    kernel, _slash, process = holder["id"].rpartition("/")[0].rpartition("/")
    if kernel != _kernel():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    # The number may have been given to another process since.
    return _started(int(process)) != holder["id"].rpartition("/")[2]


def _kernel() -> str:
    """This boot and its processes' numbers: two containers may bear one name, and each counts its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot; empty where it is dead or the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    # In a container nobody may collect the dead.
    return "" if stat[0] in "ZX" else stat[19]
