# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""systemd as a service manager: a unit for each server, and a target for all of them."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.files import leftovers
from .._core.links import is_below
from .._core.processes import STATE_MARKER, Process
from .._launch.config_files import Managed, current_text, stale_files
from .._launch.hidden import HOMES, TEMPORARY
from .._launch.on_demand import PROGRAM, proxy_unit, socket_unit, wake_names
from .._launch.quoting import systemd_environment
from .._launch.units import (
    CREDENTIALS_VERSION,
    GPU_CACHE,
    GPU_UNIT,
    TARGET,
    UNIT_FOLDER,
    UNIT_PREFIX,
    WATCHDOG_SERVICE,
    WATCHDOG_TIMER,
    credential_path,
    unit_name,
    watchdog_marker,
)
from .manager import OnDemandError, ServiceManager

if TYPE_CHECKING:
    from .base import Stopped
    from .systemd_driver import SystemdDriver


BOOTED = "/run/systemd/system"
# What a unit's CacheDirectory is below.
CACHES = "/var/cache"


# The first systemd whose proxy ends after a time without connections, and where it is.
PROXY_VERSION = 246
PROXIES = ("/usr/lib/systemd/systemd-socket-proxyd", "/lib/systemd/systemd-socket-proxyd")
# For the servers' user and in their sandbox, so not one of a virtual environment.
PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")
# Where units are, in systemd's order.
UNIT_FOLDERS = (UNIT_FOLDER, "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
SERVICE_GROUPS = "/sys/fs/cgroup/system.slice"
_LLAMA_SERVER = re.compile(r"^ExecStart=[^\n]*\bllama-server\b", re.MULTILINE)


class Systemd(ServiceManager):
    name = "systemd"
    template = "systemd.service.j2"
    common_template = "magi-llama.target.j2"
    needs_root = True
    has_timers = True
    sets_groups = True
    hides_folders = True
    # How the names of the servers' launch configs end, and the target above their units.
    suffix = ".service"
    target = TARGET

    @property
    def folder(self) -> str:
        """Where the servers' launch configs are."""
        return UNIT_FOLDER

    def runs_here(self) -> bool:
        try:
            with open("/proc/1/comm", encoding="utf-8") as stream:
                return stream.read().strip() == "systemd"
        except OSError:
            # /proc is mounted with hidepid, and this is not root: sd_booted(3) looks at this folder.
            return os.path.isdir(BOOTED)

    def config_path(self, state_dir: str, server: str) -> str:
        return os.path.join(self.folder, f"{UNIT_PREFIX}{server}{self.suffix}")

    def common_config_path(self, state_dir: str) -> str:
        return os.path.join(UNIT_FOLDER, self.target)

    def managed(self, state_dir: str) -> Managed:
        # A whole line: another state directory's path may begin with this one.
        marker = f"\n{systemd_environment({STATE_MARKER: state_dir})}\n"
        return Managed(self.folder, f"{UNIT_PREFIX}*{self.suffix}", marker)

    def config_paths(self, state_dir: str, server: Mapping[str, Any]) -> dict[str, str]:
        name = str(server["name"])
        if "on_demand" not in server:
            return super().config_paths(state_dir, server)
        return {
            **super().config_paths(state_dir, server),
            os.path.join(UNIT_FOLDER, socket_unit(name)): "systemd.wake.socket.j2",
            os.path.join(UNIT_FOLDER, proxy_unit(name)): "systemd.wake.service.j2",
        }

    def managed_files(self, state_dir: str) -> list[Managed]:
        marker = self.managed(state_dir).marker
        return [
            self.managed(state_dir),
            Managed(UNIT_FOLDER, socket_unit("*"), marker),
            Managed(UNIT_FOLDER, proxy_unit("*"), marker),
            Managed(state_dir, PROGRAM, "# Ansible managed (magi.llama)"),
        ]

    def on_demand_programs(self, state_dir: str) -> dict[str, str]:
        from .systemd_driver import SystemdDriver

        if is_below(state_dir, (*HOMES, *TEMPORARY)):
            raise OnDemandError(
                f"{state_dir} is hidden from the servers, and has what their units run before a start: set "
                "servers_state_dir to a folder that is in no home and no temporary folder."
            )
        version = SystemdDriver().version()
        if version is None or version < PROXY_VERSION:
            raise OnDemandError(
                f"systemd {version or 'of an unknown version'} cannot start servers on demand: it needs "
                f"{PROXY_VERSION} or newer."
            )
        found = [host_python(), next(filter(os.path.exists, PROXIES), None)]
        if None in found:
            missing = PYTHONS[0] if found[0] is None else PROXIES[0]
            raise OnDemandError(f"{missing} is missing on this host, and starts on demand need it.")
        return {"python": str(found[0]), "proxy": str(found[1])}

    def program_files(self, state_dir: str, servers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        return {os.path.join(state_dir, PROGRAM): PROGRAM} if any("on_demand" in server for server in servers) else {}

    def sockets(self, state_dir: str) -> dict[str, int]:
        pattern = Managed(UNIT_FOLDER, socket_unit("*"), self.managed(state_dir).marker)
        found = {}
        for path in stale_files([pattern], []):
            listens = re.search(r"^ListenStream=\S*:(\d+)$", current_text(path), re.MULTILINE)
            if listens:
                found[wake_names([os.path.basename(path)])[0]] = int(listens[1])
        return found

    def unsupervised(self, running: Mapping[str, Process], state_dir: str) -> dict[str, str]:
        lost = {name for name, process in running.items() if not in_unit(process.pid, name)}
        return dict.fromkeys(lost, "unsupervised: it belongs to no systemd unit")

    def driver(self, state_dir: str, program: str | None = None) -> SystemdDriver:
        from .systemd_driver import SystemdDriver

        return SystemdDriver()

    def facts(self, state_dir: str, candidates: Iterable[str | None]) -> dict[str, Any]:
        if not self.runs_here():
            return {"systemd": False, "systemd_version": None, "stray_variables": [], "user_namespaces": False}
        from .systemd_driver import SystemdDriver

        driver = SystemdDriver()
        return {
            "systemd": True,
            "watchdog": os.path.lexists(os.path.join(UNIT_FOLDER, WATCHDOG_TIMER)),
            "systemd_version": driver.version(),
            "stray_variables": driver.stray_variables(),
            "user_namespaces": has_user_namespaces(),
            "python": host_python(),
        }

    def foreign_units(self) -> list[str]:
        return foreign_units() if self.runs_here() else []

    def key_path(self, server: str, path: str) -> str:
        from .systemd_driver import SystemdDriver

        version = SystemdDriver().version() if self.runs_here() else None
        return path if version is None or version < CREDENTIALS_VERSION else credential_path(server)

    def disabled(self, names: Sequence[str]) -> list[str]:
        """Checks systemd's own links instead of running systemctl, because every run needs this."""
        target = os.path.join(UNIT_FOLDER, "multi-user.target.wants", TARGET)
        wants = _wants()
        off = not os.path.lexists(target)
        return [
            name
            for name in names
            if off or not any(os.path.lexists(os.path.join(wants, unit(name))) for unit in (unit_name, socket_unit))
        ]

    def retire(self, state_dir: str, timeout: float) -> None:
        if os.geteuid() == 0:
            from .systemd_driver import SystemdDriver

            SystemdDriver().retire(timeout)

    def server_names(self, state_dir: str) -> list[str]:
        units = stale_files([self.managed(state_dir)], [])
        return [os.path.basename(path)[len(UNIT_PREFIX) : -len(self.suffix)] for path in units]

    def states(self) -> set[str]:
        marked = stale_files([self._of_any_deployment()], [])
        pattern = re.compile(rf"^Environment=\"?{STATE_MARKER}=([^\"\n]*)", re.MULTILINE)
        return {state for path in marked for state in pattern.findall(current_text(path))}

    def owned_paths(self, state_dir: str, names: Iterable[str], configs: Sequence[str]) -> list[str]:
        if not os.access(UNIT_FOLDER, os.W_OK):
            # All of it is root's.
            return []
        mine = [*(path for path in _gpu_caches(names) if os.path.isdir(path)), *_watchdog_units(state_dir)]
        halves = [*leftovers(UNIT_FOLDER), *mine]
        if stale_files([self._of_any_deployment()], configs):
            # Another state directory on this host has units, and another run may be writing one right now.
            marker = self.managed(state_dir).marker
            return [path for path in halves if path in mine or marker in current_text(path)]
        # The target is removed with the last unit.
        links = [_wants(), self.common_config_path(state_dir)]
        links += [path for path in (os.path.join(UNIT_FOLDER, GPU_UNIT),) if os.path.lexists(path)]
        return [*links, os.path.join(UNIT_FOLDER, "multi-user.target.wants", TARGET), *halves]

    def owned_trees(self, state_dir: str, names: Iterable[str]) -> list[str]:
        # Only systemd writes in them, and their names are ours.
        return [_wants(), *_gpu_caches(names)]

    def _of_any_deployment(self) -> Managed:
        return Managed(self.folder, f"{UNIT_PREFIX}*{self.suffix}", f"{STATE_MARKER}=")

    def units_of_user(self, user: str, state_dir: str) -> list[str]:
        mine = {unit_name(name) for name in self.server_names(state_dir)}
        line = re.compile(rf"^User={re.escape(user)}\s*$", re.MULTILINE)
        try:
            units = sorted(name for name in os.listdir(UNIT_FOLDER) if name.endswith(".service"))
        except OSError:
            return []
        return [
            name for name in units if name not in mine and line.search(current_text(os.path.join(UNIT_FOLDER, name)))
        ]

    def end(self, state_dir: str, paths: Sequence[str], timeout: float) -> list[Stopped]:
        driver = self.driver(state_dir)
        if {*_watchdog_units(state_dir)} & {*paths}:
            driver.end_watchdog()
        stopped = list(driver.stop(self.server_names(state_dir), timeout).values())
        if self.common_config_path(state_dir) in paths:
            driver.stop_target()
        return stopped

    def forget(self, names: Sequence[str]) -> None:
        self.driver("").forget(names)


def _wants() -> str:
    """The folder of links to the servers that start at boot."""
    return os.path.join(UNIT_FOLDER, f"{TARGET}.wants")


def _watchdog_units(state_dir: str) -> list[str]:
    """The units of this state directory's watchdog, and the link that starts it at boot."""
    paths = [os.path.join(UNIT_FOLDER, name) for name in (WATCHDOG_TIMER, WATCHDOG_SERVICE)]
    found = [path for path in paths if watchdog_marker(state_dir) in current_text(path)]
    link = os.path.join(UNIT_FOLDER, "timers.target.wants", WATCHDOG_TIMER)
    return [*found, link] if found and os.path.islink(link) else found


def _gpu_caches(names: Iterable[str]) -> list[str]:
    """The folders that systemd makes for what a GPU's driver keeps for servers."""
    return [os.path.join(CACHES, GPU_CACHE, name) for name in names]


def host_python() -> str | None:
    """The Python of the host for what runs all the time, which no virtual environment takes away; None without one."""
    return next(filter(os.path.exists, PYTHONS), None)


def has_user_namespaces(limit: str = "/proc/sys/user/max_user_namespaces") -> bool:
    """Return whether the kernel allows user namespaces, which some administrators switch off."""
    try:
        with open(limit, encoding="ascii") as stream:
            return int(stream.read()) > 0
    except (OSError, ValueError):
        return False


def foreign_units(folders: Sequence[str] = UNIT_FOLDERS, groups: str = SERVICE_GROUPS) -> list[str]:
    """Return "NAME (PATH)" of each unit of another origin that runs llama-server and is enabled or active.

    groups is the folder of systemd's control groups of services.
    """
    found: dict[str, str] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(folder)):
                # The first folder wins, as for systemd.
                if name.endswith(".service") and name not in found:
                    found[name] = os.path.join(folder, name)
    links = {
        os.path.basename(link) for link in glob.glob(os.path.join(glob.escape(folders[0]), "*.wants", "*.service"))
    }
    return [
        f"{name} ({path})"
        for name, path in sorted(found.items())
        if _is_in_use(name, links, groups) and _runs_llama_server(path)
    ]


def _is_in_use(unit: str, links: Iterable[str], groups: str) -> bool:
    if "@." in unit:
        # A template: its instances have links.
        start = unit[: unit.index("@.") + 1]
        return any(link.startswith(start) for link in links)
    return unit in links or os.path.isdir(os.path.join(groups, unit))


def _runs_llama_server(path: str) -> bool:
    text = current_text(path)
    return f"{STATE_MARKER}=" not in text and bool(_LLAMA_SERVER.search(text))


def in_unit(pid: int, name: str, proc: str = "/proc") -> bool:
    """Whether a process belongs to its server's unit; true if the host does not report it."""
    try:
        with open(f"{proc}/{pid}/cgroup", encoding="utf-8", errors="replace") as stream:
            groups = stream.read()
    except OSError:
        return True
    return not groups or f"/{unit_name(name)}" in groups
