# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The table of service managers: the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .._core.errors import MagiError
from .._launch.config_files import Managed, stale_files

if TYPE_CHECKING:
    from .._core.processes import Listener, Process
    from .base import ServiceDriver
    from .manager import ServiceManager


class UnknownManagerError(MagiError):
    """Raised for an unknown service manager."""


class ImageError(MagiError):
    """Raised where service manager and llama-server do not fit together."""


# Each module call compiles its imports, so a manager is imported only when it is needed.
def _systemd() -> ServiceManager:
    from .systemd import Systemd

    return Systemd()


def _supervisor() -> ServiceManager:
    from .supervisor import Supervisor

    return Supervisor()


def _container() -> ServiceManager:
    from .container import Container

    return Container()


# auto tries them in this order, and finds one of the first two.
MANAGERS: dict[str, Callable[[], ServiceManager]] = {
    "systemd": _systemd,
    "supervisor": _supervisor,
    "container": _container,
}
# Values of servers_service_manager. Static documentation repeats them; CONTRIBUTING.md lists where.
CHOICES = ("auto", *MANAGERS)
# Its driver answers for a host without a deployment: it works on every host, and reports no servers.
WITHOUT_DEPLOYMENT = "supervisor"


def find_manager(name: str) -> ServiceManager:
    """Return the service manager with this name. Raises UnknownManagerError."""
    try:
        return MANAGERS[name]()
    except KeyError:
        raise UnknownManagerError(
            f"Unknown service manager {name!r}; this collection knows: {', '.join(MANAGERS)}."
        ) from None


def all_managers() -> list[ServiceManager]:
    return [find() for find in MANAGERS.values()]


def choose_manager(wanted: str) -> ServiceManager:
    """Return the manager named by servers_service_manager; for auto, the first one that this host can use."""
    if wanted != "auto":
        return find_manager(wanted)
    return next(manager for manager in all_managers() if manager.runs_here())


def driver_for(record: Mapping[str, Any], state_dir: str, program: str | None = None) -> ServiceDriver:
    """Return the driver for the deployed servers; one without servers if nothing is deployed."""
    return find_manager(record["service_manager"] or WITHOUT_DEPLOYMENT).driver(state_dir, program)


def check_image(manager: ServiceManager, runtime: Mapping[str, Any]) -> None:
    """Raise ImageError where llama-server is in an image and the servers are not containers, or the reverse."""
    has_image = runtime.get("image") is not None
    if manager.runs_images and not has_image:
        raise ImageError(
            f"servers_service_manager is {manager.name}, and {runtime.get('path')} is not in a container image: set "
            "runtime_image (or runtime_image_archive) to an image with llama-server, and runtime_install_method to "
            "auto."
        )
    if has_image and not manager.runs_images:
        fitting = " or ".join(one.name for one in all_managers() if one.runs_images)
        raise ImageError(
            f"llama-server is in the image {runtime['image']['reference']}, which {manager.name} does not run: set "
            f"servers_service_manager to {fitting}, or runtime_image to nothing."
        )


def retire_others(record: Mapping[str, Any], state_dir: str) -> None:
    """Shut down the previous service managers and their servers: they would start the servers again."""
    if record["service_manager"] is None:
        return
    from .base import DEFAULT_STOP_TIMEOUT

    timeout = max((float(server["stop_timeout"]) for server in record["servers"]), default=DEFAULT_STOP_TIMEOUT)
    for manager in all_managers():
        if manager.name != record["service_manager"]:
            manager.retire(state_dir, timeout)


def unsupervised(
    running: Mapping[str, Process], record: Mapping[str, Any], state_dir: str, service_manager: str
) -> dict[str, str]:
    """Return {server: reason} for running servers that the service manager would not restart after a crash."""
    before = record["service_manager"]
    if before not in (None, service_manager):
        from .._core.processes import MANAGER_CHANGED

        return dict.fromkeys(running, f"{MANAGER_CHANGED} ({before} → {service_manager})")
    return find_manager(service_manager).unsupervised(running, state_dir)


def disabled(record: Mapping[str, Any], service_manager: str) -> list[str]:
    """Return names of deployed servers that are not started at boot."""
    if service_manager != record["service_manager"]:
        return []
    return find_manager(service_manager).disabled([str(server["name"]) for server in record["servers"]])


def foreign_units() -> list[str]:
    """Return a description of each unit on this host that runs a llama-server of another origin."""
    return [unit for manager in all_managers() for unit in manager.foreign_units()]


def managed_files(state_dir: str) -> list[Managed]:
    """Return the patterns of this state directory's launch configs, one per service manager."""
    return [entry for manager in all_managers() for entry in manager.managed_files(state_dir)]


def open_sockets(service_manager: str, state_dir: str, held: Mapping[int, Listener]) -> dict[str, int]:
    """Return the ports at which the service manager listens for servers on demand, by name. held are the listeners."""
    wanted = find_manager(service_manager).sockets(state_dir)
    return {
        name: port
        for name, port in wanted.items()
        # Without root, it is not visible whose it is.
        if port in held and (held[port].pid is None or 1 in held[port].pids)
    }


def deployed_paths(state_dir: str, service_manager: str) -> list[str]:
    """Return the paths of this state directory's launch configs and of the shared config, which may not exist."""
    common = find_manager(service_manager).common_config_path(state_dir)
    return [*stale_files(managed_files(state_dir), []), common]
