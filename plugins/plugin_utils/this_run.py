# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Identify this run of Ansible, for the lock on a host."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from pathlib import Path
from typing import Any

from ansible import context


def this_run(host: str) -> dict[str, Any]:
    """Describe this run on a host: the main ansible process, from which this task's worker was forked.

    host is the inventory's name for it: two names may lead to one machine, which then has two runs.
    """
    pid = os.getppid()
    playbooks = context.CLIARGS.get("args") or ()
    # For the program ansible this is a host pattern.
    names = [] if isinstance(playbooks, str) else [Path(playbook).name for playbook in playbooks]
    return {
        "id": f"{_kernel()}/{pid}/{_started(pid)} {host}",
        "controller": socket.gethostname(),
        "user": getpass.getuser(),
        "pid": pid,
        "playbook": " ".join(names) or Path(sys.argv[0]).name,
    }


def other_name(holder: dict[str, Any], run: dict[str, Any]) -> str | None:
    """Return the inventory's other name for this machine if the holder of its lock is the same run; else None."""
    process, _space, name = holder["id"].partition(" ")
    return name if name and holder["id"] != run["id"] and process == run["id"].partition(" ")[0] else None


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether the run was on this controller and its process is gone; unknown on another controller."""
    process_id = holder["id"].partition(" ")[0]
    kernel, _slash, process = process_id.rpartition("/")[0].rpartition("/")
    if kernel != _kernel():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    # The PID may have been reused since.
    return _started(int(process)) != process_id.rpartition("/")[2]


def _kernel() -> str:
    """Identify this boot and PID namespace: two containers may have the same host name, and each has its own PIDs."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty if it has ended or is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    # In a container, zombies may never be reaped.
    return "" if stat[0] in "ZX" else stat[19]
