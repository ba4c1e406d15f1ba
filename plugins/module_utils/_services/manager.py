# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The interface of a service manager. To add one, write a subclass and add an entry in table.py.

Static documentation lists the choices too: CONTRIBUTING.md names the files, and tests fail until they agree.

Every plan needs this part. The drivers are separate because they take long to load.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.errors import MagiError

if TYPE_CHECKING:
    from .._core.processes import Process
    from .._launch.config_files import Managed
    from .base import ServiceDriver, Stopped


class OnDemandError(MagiError):
    """Why a service manager or host cannot start servers on demand: a sentence."""


class ServiceManager(ABC):
    """A service manager: the location of its launch configs, its requirements, and its driver."""

    name: str
    # Templates in the role servers: one per server, and one for the config that all servers share.
    template: str
    common_template: str
    needs_root = False
    # Whether it starts the servers again after a reboot of the host.
    starts_at_boot = True
    # Whether it starts programs from time to time, as the watchdog needs.
    has_timers = False
    # Whether its launch configs give a server groups of its own, besides those of the user.
    sets_groups = False
    # Whether its launch configs hide homes and temporary folders, except for what the plan finds that a server needs.
    hides_folders = False
    # Whether its servers run llama-server from a container image, with no files of the host but those that are mounted.
    runs_images = False
    # The executable that facts() needs; the option <program>_path of host_facts, if there is one, takes precedence.
    program: str | None = None

    @abstractmethod
    def runs_here(self) -> bool:
        """Return whether this host can use it. auto selects the first manager in the table that can be used."""

    @abstractmethod
    def config_path(self, state_dir: str, server: str) -> str:
        """Return the path of a server's launch config."""

    @abstractmethod
    def common_config_path(self, state_dir: str) -> str:
        """Return the path of the config that all servers share."""

    @abstractmethod
    def managed(self, state_dir: str) -> Managed:
        """Return the pattern that matches this state directory's launch configs."""

    def config_paths(self, state_dir: str, server: Mapping[str, Any]) -> dict[str, str]:
        """Return the paths of all launch configs of a server by its record, each with its template."""
        return {self.config_path(state_dir, str(server["name"])): self.template}

    def managed_files(self, state_dir: str) -> list[Managed]:
        """Return the patterns that match all of this state directory's launch configs."""
        return [self.managed(state_dir)]

    def on_demand_programs(self, state_dir: str) -> dict[str, str]:
        """Return the programs that start servers on demand, by their names in a record. Raises OnDemandError."""
        raise OnDemandError(
            f"{self.name} does not start servers on demand, which needs systemd to listen for their requests."
        )

    def program_files(self, state_dir: str, servers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Return the paths of programs of ours that these servers need, each with its file in the role servers."""
        return {}

    def sockets(self, state_dir: str) -> dict[str, int]:
        """Return the ports at which it is to listen for servers, by name, as its launch configs say."""
        return {}

    @abstractmethod
    def unsupervised(self, running: Mapping[str, Process], state_dir: str) -> dict[str, str]:
        """Return {server: reason} for running servers that it would not restart after a crash."""

    @abstractmethod
    def driver(self, state_dir: str, program: str | None = None) -> ServiceDriver:
        """Return the driver that starts and stops servers; program overrides the manager's executable."""

    @abstractmethod
    def retire(self, state_dir: str, timeout: float) -> None:
        """Stop its servers after the host changed to another manager: it would start them again."""

    # The methods below have defaults that suit most managers.
    def check(self, state_dir: str) -> None:  # noqa: B027
        """Raise MagiError if it cannot be used with this state directory."""

    def facts(self, state_dir: str, candidates: Iterable[str | None]) -> dict[str, Any]:
        """Return its part of the fact llama_host; candidates are possible paths of program, best first."""
        return {}

    def is_missing(self, facts: Mapping[str, Any]) -> bool:
        """Return whether the role must still install it (tasks/install_<name>.yml), according to its facts."""
        return False

    def install_facts(self) -> dict[str, Any]:
        """Return what the role must know to install it, for the fact llama_host; asked only if it is missing."""
        return {}

    def key_path(self, server: str, path: str) -> str:
        """Return where a server finds the API key file at path; another path if the manager hands the file over."""
        return path

    def foreign_units(self) -> list[str]:
        """Return a description of each of its units that runs a llama-server which the collection does not manage."""
        return []

    def restart_triggers(self, stop_timeout: int) -> list[Any]:
        """Return settings, besides command line and environment, whose change requires a server restart."""
        return []

    def disabled(self, names: Sequence[str]) -> list[str]:
        """Return the names among these servers that are not started at boot."""
        return []

    def server_names(self, state_dir: str) -> list[str]:
        """Return the names of servers that have a launch config in this state directory."""
        return []

    def states(self) -> set[str]:
        """Return the state directories of all deployments on this host, as far as its launch configs show them."""
        return set()

    def owned_paths(self, state_dir: str, names: Iterable[str], configs: Sequence[str]) -> list[str]:
        """Return the paths of files, other than launch configs, that it or the collection created.

        names are all servers ever deployed here; configs are the paths of this state directory's launch configs.
        """
        return []

    def owned_trees(self, state_dir: str, names: Iterable[str]) -> list[str]:
        """Return the folders among owned_paths that are removed with all that is in them: ours by a mark, or by place.

        A folder at any other of these paths is not ours.
        """
        return []

    def folders(self, state_dir: str) -> list[str]:
        """Return the folders that it uses in the state directory; teardown removes them once they are empty."""
        return []

    def is_present(self, state_dir: str) -> bool:
        """Return whether those folders are managed by the collection, even if no file was removed from them."""
        return False

    def units_of_user(self, user: str, state_dir: str) -> list[str]:
        """Return the units that it runs as this user outside this state directory."""
        return []

    def end(self, state_dir: str, paths: Sequence[str], timeout: float) -> list[Stopped]:
        """Stop all servers of this state directory permanently, before the paths are removed."""
        return []

    def forget(self, names: Sequence[str]) -> None:  # noqa: B027
        """Drop servers whose launch configs were removed."""
