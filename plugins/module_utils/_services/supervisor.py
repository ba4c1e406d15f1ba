# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""supervisor as a service manager: a supervisord for each state directory, and a program for each server."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.files import TEMPORARY_PREFIX, TEMPORARY_SUFFIX, leftovers
from .._core.ownership import open_trusted
from .._core.processes import STATE_MARKER, Process
from .._launch.config_files import Managed, current_text, stale_files
from .._launch.quoting import supervisor_environment
from .manager import ServiceManager

if TYPE_CHECKING:
    from .base import ServiceDriver, Stopped

# The identifier in our supervisord.conf.
IDENTIFIER = "magi-llama"
# What pyvenv.cfg of our virtual environment contains: its prompt in tasks/install_supervisor.yml.
VENV_MARK = "magi.llama"
# supervisor binds a temporary socket, named after the final one plus its PID, before it links the final name.
SOCKET_PATH_LIMIT = 107 - len(".4194304")
# Files next to our supervisord.conf.
OWN_FILE = re.compile(
    r"supervisord\.(conf|pid|log(\.\d+)?)|supervisor\.sock(\.\d+)?|(started|log_marks)\.json|venv"
    rf"|{re.escape(TEMPORARY_PREFIX)}.*{re.escape(TEMPORARY_SUFFIX)}"
)


class Supervisor(ServiceManager):
    name = "supervisor"
    template = "supervisor.program.conf.j2"
    common_template = "supervisord.conf.j2"
    # Nothing starts supervisord itself.
    starts_at_boot = False
    program = "supervisord"

    def runs_here(self) -> bool:
        return True

    def config_path(self, state_dir: str, server: str) -> str:
        return os.path.join(folder_of(state_dir), "conf.d", f"{server}.conf")

    def common_config_path(self, state_dir: str) -> str:
        return os.path.join(folder_of(state_dir), "supervisord.conf")

    def managed(self, state_dir: str) -> Managed:
        # The state directory's path is in quotes, so it does not match a longer path.
        folder = os.path.join(folder_of(state_dir), "conf.d")
        return Managed(folder, "*.conf", supervisor_environment({STATE_MARKER: state_dir}))

    def unsupervised(self, running: Mapping[str, Process], state_dir: str) -> dict[str, str]:
        daemon = daemon_pid(state_dir)
        lost = {name for name, process in running.items() if process.ppid != daemon}
        return dict.fromkeys(lost, "unsupervised: supervisord is not running")

    def driver(self, state_dir: str, program: str | None = None) -> ServiceDriver:
        from .supervisor_driver import SupervisorDriver

        return SupervisorDriver(state_dir, program)

    def check(self, state_dir: str) -> None:
        check_socket_path(state_dir)

    def facts(self, state_dir: str, candidates: Iterable[str | None]) -> dict[str, Any]:
        given, *found = candidates
        own = os.path.join(folder_of(state_dir), "venv", "bin", "supervisord")
        paths = [given, own, *found]
        supervisord = next((path for path in paths if path and os.access(path, os.X_OK)), None)
        return {"supervisord": supervisord}

    def is_missing(self, facts: Mapping[str, Any]) -> bool:
        return facts["supervisord"] is None

    def install_facts(self) -> dict[str, Any]:
        return {"venv_missing": not has_venv()}

    def restart_triggers(self, stop_timeout: int) -> list[Any]:
        # systemd applies a new stop time-out to running servers, supervisor only to new processes.
        return [stop_timeout]

    def retire(self, state_dir: str, timeout: float) -> None:
        self.end(state_dir, [], timeout)

    def owned_paths(self, state_dir: str, names: Iterable[str], configs: Sequence[str]) -> list[str]:
        # The names of supervisor's folders are common: in a shared state directory they may be unmanaged.
        paths = [*own_files(state_dir), *log_files(state_dir, names)]
        return [*paths, *leftovers(self.managed(state_dir).folder)]

    def owned_trees(self, state_dir: str, names: Iterable[str]) -> list[str]:
        # The user may have made one there before, of which we use the program.
        return own_venv(state_dir)

    def folders(self, state_dir: str) -> list[str]:
        folder = folder_of(state_dir)
        return [folder, os.path.join(folder, "conf.d"), os.path.join(state_dir, "log")]

    def is_present(self, state_dir: str) -> bool:
        return is_ours(state_dir)

    def end(self, state_dir: str, paths: Sequence[str], timeout: float) -> list[Stopped]:
        if not is_ours(state_dir):
            return []
        from .supervisor_driver import SupervisorDriver

        return list(SupervisorDriver(state_dir).end(timeout).values())


def has_venv() -> bool:
    """Whether the host's python3 can make a virtual environment: Debian has a part of it in a package of its own."""
    # Imported here: only a host without supervisor needs it.
    from .._core.commands import CommandTimeoutError, run_command

    path = os.environ.get("PATH", os.defpath)
    try:
        return run_command(["python3", "-c", "import ensurepip, venv"], {"PATH": path}).code == 0
    except (CommandTimeoutError, OSError):
        return False


def folder_of(state_dir: str) -> str:
    """Return the folder of a state directory's supervisord."""
    return os.path.join(state_dir, "supervisor")


def check_socket_path(state_dir: str) -> None:
    """Raise ServiceError if the path of supervisord's socket would be too long."""
    if len(os.fsencode(os.path.join(folder_of(state_dir), "supervisor.sock"))) > SOCKET_PATH_LIMIT:
        # Imported here: every plan loads this file, and each module call compiles its imports.
        from .base import ServiceError

        spare = SOCKET_PATH_LIMIT - len("/supervisor/supervisor.sock")
        raise ServiceError(
            f"servers_state_dir {state_dir} is too long: the limit for socket paths leaves {spare} bytes for it. "
            "Choose a shorter path."
        )


def daemon_pid(state_dir: str) -> int | None:
    """Return the PID from the pid file of the state directory's supervisord; None without one."""
    try:
        with open_trusted(os.path.join(folder_of(state_dir), "supervisord.pid")) as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return None


def is_ours(state_dir: str) -> bool:
    """Whether a state directory has a managed supervisord, or the remains of one from an interrupted run.

    A folder of that name may have existed before, with an unmanaged supervisord.
    """
    config = os.path.join(folder_of(state_dir), "supervisord.conf")
    try:
        with open(config, encoding="utf-8", errors="replace") as stream:
            return f"\nidentifier={IDENTIFIER}\n" in stream.read()
    except OSError:
        return not os.path.lexists(config) and _is_unfinished(state_dir)


def _is_unfinished(state_dir: str) -> bool:
    """Whether supervisor's folder has only what an interrupted run leaves there before it writes supervisord.conf."""
    folder = folder_of(state_dir)
    configs = Supervisor().managed(state_dir)
    allowed = {*leftovers(folder), *leftovers(configs.folder), *stale_files([configs], [])}
    allowed |= set(own_venv(state_dir))
    try:
        found = {os.path.join(folder, name) for name in os.listdir(folder)} - {configs.folder}
        if os.path.isdir(configs.folder):
            found |= {os.path.join(configs.folder, name) for name in os.listdir(configs.folder)}
    except OSError:
        return False
    return found <= allowed


def own_venv(state_dir: str) -> list[str]:
    """Return the path of the virtual environment that we made for supervisord, if there is one."""
    path = os.path.join(folder_of(state_dir), "venv")
    return [path] if VENV_MARK in current_text(os.path.join(path, "pyvenv.cfg")) else []


def own_files(state_dir: str) -> list[str]:
    """Return the files that supervisord and we write in a state directory, except servers' programs and logs."""
    folder = folder_of(state_dir)
    with contextlib.suppress(OSError):
        if is_ours(state_dir):
            return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if OWN_FILE.fullmatch(name)]
    return []


def log_files(state_dir: str, names: Iterable[str]) -> list[str]:
    """Return the logs of these servers and of those in supervisord's own log."""
    # Imported here: only teardown needs it, and each module call compiles its imports.
    from .supervisor_log import History, parse_log

    histories: dict[str, History] = {}
    for path in own_files(state_dir):
        if os.path.basename(path).startswith("supervisord.log"):
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
                parse_log(stream.read(), histories)
    known = {*names, *histories}
    folder = os.path.join(state_dir, "log")
    with contextlib.suppress(OSError):
        found = [(name, re.fullmatch(r"(.+)\.log(\.\d+)?", name)) for name in sorted(os.listdir(folder))]
        return [os.path.join(folder, name) for name, match in found if match and match[1] in known]
    return []
