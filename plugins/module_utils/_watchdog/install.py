# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The watchdog on a host: its program in the state directory, and a timer of systemd that starts it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._core.commands import Completed
from .._core.errors import MagiError
from .._core.text import printable
from .._health.watched import watched_path
from .._launch.config_files import File, current_text, files_to_write, write_all
from .._launch.quoting import systemd_argv
from .._launch.units import UNIT_FOLDER, WATCHDOG_PROGRAM, WATCHDOG_SERVICE, WATCHDOG_TIMER, watchdog_marker
from .._services.systemd import PYTHONS, host_python

OFF = "off"


class WatchdogError(MagiError):
    """Raised where the watchdog cannot be set up."""


@dataclass(frozen=True)
class Settings:
    """mode: report or restart; seconds between two looks and for each answer; restarts of a server within an hour."""

    mode: str
    interval: int
    timeout: float
    restarts_per_hour: int


def program_path(state_dir: str) -> str:
    """Path of the program."""
    return os.path.join(state_dir, WATCHDOG_PROGRAM)


def unit_paths(folder: str = UNIT_FOLDER) -> list[str]:
    """Paths of the timer and of what it starts."""
    return [os.path.join(folder, name) for name in (WATCHDOG_TIMER, WATCHDOG_SERVICE)]


def units(state_dir: str, settings: Settings, python: str, folder: str = UNIT_FOLDER) -> list[File]:
    """The timer, and what it starts."""
    # A look asks servers side by side, and restarts those that hang one by one. What takes an hour hangs itself.
    words = [python, "-I", program_path(state_dir), state_dir, settings.mode]
    command = systemd_argv([*words, f"{settings.timeout:g}", str(settings.restarts_per_hour)])
    service = f"""{watchdog_marker(state_dir)}
[Unit]
Description=Look at the llama-servers, and restart those that hang

[Service]
Type=oneshot
ExecStart={command}
TimeoutStartSec=1h
SyslogIdentifier=magi-llama-watchdog
NoNewPrivileges=yes
PrivateDevices=yes
ProtectSystem=full
"""
    # After the last look has ended: two never overlap.
    timer = f"""{watchdog_marker(state_dir)}
[Unit]
Description=Look at the llama-servers every {settings.interval} s

[Timer]
OnActiveSec={settings.interval}
OnUnitInactiveSec={settings.interval}
AccuracySec=1

[Install]
WantedBy=timers.target
"""
    texts = zip(unit_paths(folder), (timer, service))
    return [File(path, text.encode()) for path, text in texts]


def find_python() -> str:
    """Return the Python of the host. Raises WatchdogError."""
    python = host_python()
    if python is None:
        raise WatchdogError(f"{PYTHONS[0]} is missing on this host: install python3, or set servers_watchdog to off.")
    return python


def require_ours(state_dir: str, folder: str = UNIT_FOLDER) -> None:
    """Raise WatchdogError where a unit of that name is not of this state directory."""
    for path in unit_paths(folder):
        if os.path.lexists(path) and watchdog_marker(state_dir) not in current_text(path):
            raise WatchdogError(
                f"{path} already exists and is not of {printable(state_dir)}: a host has one watchdog. Set "
                "servers_watchdog to off in one of the two deployments, or remove that unit."
            )


def changes(state_dir: str, wanted: Sequence[File]) -> tuple[list[File], list[str]]:
    """Return the files to write, and the paths to remove where nothing is wanted."""
    if wanted:
        return files_to_write(wanted), []
    paths = [*unit_paths(), program_path(state_dir), watched_path(state_dir)]
    return [], [path for path in paths if os.path.lexists(path)]


def timer_runs(run: Callable[[Sequence[str]], Completed]) -> bool:
    """Whether the timer is enabled and active, with what its files say.

    It is not where a run was killed after it had written the files, or where someone has switched it off.
    """
    properties = "--property=UnitFileState,ActiveState,NeedDaemonReload"
    text = run(["systemctl", "show", properties, WATCHDOG_TIMER, WATCHDOG_SERVICE]).stdout
    # A block for each unit.
    timer = text.partition("\n\n")[0].splitlines()
    return {"UnitFileState=enabled", "ActiveState=active"} <= set(timer) and "NeedDaemonReload=yes" not in text


def apply(write: Sequence[File], remove: Sequence[str], run: Callable[[Sequence[str]], Completed]) -> None:
    """Write or remove the files, and start or stop the timer. Raises WatchdogError, LaunchConfigError."""
    if remove:
        # Also where a run that was killed has removed the unit already.
        run(["systemctl", "disable", "--now", "--quiet", WATCHDOG_TIMER])
        for path in remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    write_all(write)
    commands = [["systemctl", "daemon-reload"]]
    if not remove:
        # A timer that runs takes a changed interval only so.
        commands += [["systemctl", "enable", "--quiet", WATCHDOG_TIMER], ["systemctl", "restart", WATCHDOG_TIMER]]
    for command in commands:
        code, _output, complaint = run(command)
        if code != 0:
            raise WatchdogError(f"{' '.join(command)} failed: {complaint.strip()}")
