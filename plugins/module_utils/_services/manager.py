# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a service manager is to this collection. A new one is a class of this kind and an entry in table.py.

Every plan asks about these things, so they are apart from the drivers, which take long to load.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._core.processes import Process
    from .._launch.config_files import Managed
    from .base import ServiceDriver, Stopped


class ServiceManager(ABC):
    """Where a service manager keeps its launch configs, what it needs, and how it is driven."""

    name: str
    # Templates of the role servers: for one server, and for the config that all servers share.
    template: str
    common_template: str
    needs_root = False

    @abstractmethod
    def runs_here(self) -> bool:
        """Whether this host can use it. The first in the table that says so is what auto means."""

    @abstractmethod
    def config_path(self, state_dir: str, server: str) -> str:
        """Path of a server's launch config."""

    @abstractmethod
    def common_config_path(self, state_dir: str) -> str:
        """Path of the config that all servers share."""

    @abstractmethod
    def managed(self, state_dir: str) -> Managed:
        """Which files are launch configs of this state directory."""

    @abstractmethod
    def unwatched(self, running: Mapping[str, Process], state_dir: str) -> dict[str, str]:
        """Running servers that it would not start again if they died, with the reason, by name."""

    @abstractmethod
    def driver(self, state_dir: str, program: str | None = None) -> ServiceDriver:
        """What starts and stops the servers; program is the manager's own, where it is not the one on the host."""

    @abstractmethod
    def retire(self, state_dir: str, timeout: float) -> None:
        """End its servers on a host that has gone over to another manager: it would start them again."""

    # Most have nothing to refuse, and nothing to forget.
    def check(self, state_dir: str) -> None:  # noqa: B027
        """Raise MagiError where it cannot be used with this state directory."""

    def facts(self, state_dir: str, candidates: Iterable[str | None]) -> dict[str, Any]:
        """What the fact llama_host has of it; candidates are paths at which its program may be."""
        return {}

    def is_missing(self, facts: Mapping[str, Any]) -> bool:
        """Whether the role has yet to install it (tasks/install_<name>.yml), by its facts."""
        return False

    def restart_triggers(self, stop_timeout: int) -> list[Any]:
        """What a running server takes over with a new process only, besides its command line and environment."""
        return []

    def disabled(self, names: Sequence[str]) -> list[str]:
        """Those of these servers that would not be started at boot."""
        return []

    def server_names(self, state_dir: str) -> list[str]:
        """Names of the servers that have a launch config of this state directory."""
        return []

    def owned_paths(self, state_dir: str, names: Iterable[str], configs: Sequence[str]) -> list[str]:
        """Paths of all that it and we have made besides launch configs; names are servers that were here once.

        configs are the paths of this state directory's launch configs.
        """
        return []

    def folders(self, state_dir: str) -> list[str]:
        """Folders in the state directory that it uses; they go once they are empty."""
        return []

    def is_present(self, state_dir: str) -> bool:
        """Whether those folders are ours even where we have removed nothing from them."""
        return False

    def units_of_user(self, user: str, state_dir: str) -> list[str]:
        """What it runs as this user for others than this state directory."""
        return []

    def end(self, state_dir: str, paths: Sequence[str], timeout: float) -> list[Stopped]:
        """Stop all servers of this state directory for good, before the paths are removed."""
        return []

    def forget(self, names: Sequence[str]) -> None:  # noqa: B027
        """Drop servers whose launch configs have been removed."""
