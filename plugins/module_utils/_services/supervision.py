# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which servers their service manager watches over and would start at boot, by what the host shows without asking it.

Every plan wants to know: this is apart from the managers themselves, which take long to load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.processes import Process
from .._launch.units import TARGET, UNIT_FOLDER, unit_name

# What our supervisord.conf calls its supervisord.
IDENTIFIER = "magi-llama"


def unwatched(
    running: Mapping[str, Process], record: Mapping[str, Any], state_dir: str, service_manager: str
) -> dict[str, str]:
    """Servers that run and that the service manager would not start again if they died, with the reason, by name."""
    before = record["service_manager"]
    if before not in (None, service_manager):
        return dict.fromkeys(running, f"it goes over from {before} to {service_manager}")
    if service_manager == "systemd":
        lost = {name for name, process in running.items() if not in_unit(process.pid, name)}
        return dict.fromkeys(lost, "no unit of systemd watches over it")
    daemon = daemon_pid(state_dir)
    lost = {name for name, process in running.items() if process.ppid != daemon}
    return dict.fromkeys(lost, "nobody watches over it, as its supervisord has died")


def disabled(record: Mapping[str, Any], service_manager: str) -> list[str]:
    """Deployed servers that run on as they are and would not be started at boot, by name."""
    if not service_manager == record["service_manager"] == "systemd":
        return []
    return not_at_boot([str(server["name"]) for server in record["servers"]])


def not_at_boot(names: Sequence[str]) -> list[str]:
    """Those of these servers that would not be started at boot, as somebody has disabled their units or the target.

    By the links that systemd itself goes by: it is asked at every run.
    """
    target = os.path.join(UNIT_FOLDER, "multi-user.target.wants", TARGET)
    wants = os.path.join(UNIT_FOLDER, f"{TARGET}.wants")
    disabled = not os.path.lexists(target)
    return [name for name in names if disabled or not os.path.lexists(os.path.join(wants, unit_name(name)))]


def in_unit(pid: int, name: str, proc: str = "/proc") -> bool:
    """Whether a process belongs to its server's unit; true where the host does not tell."""
    try:
        with open(f"{proc}/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
            groups = stream.read()
    except OSError:
        return True
    return not groups or f"/{unit_name(name)}" in groups


def daemon_pid(state_dir: str) -> int | None:
    """The process of the state directory's supervisord as it noted it down."""
    try:
        with open(os.path.join(state_dir, "supervisor", "supervisord.pid"), encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return None


def is_ours(state_dir: str) -> bool:
    """Whether a state directory has a supervisord of ours, or what a run that was killed early has left of one.

    A folder of that name may have been there before with somebody else's.
    """
    config = os.path.join(state_dir, "supervisor", "supervisord.conf")
    try:
        with open(config, encoding="utf-8", errors="replace") as stream:
            return f"\nidentifier={IDENTIFIER}\n" in stream.read()
    except OSError:
        return os.path.isdir(os.path.dirname(config)) and not os.path.lexists(config)
