# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Containers as services: a quadlet file for each server, from which systemd generates the unit that runs podman."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.files import leftovers
from .._core.podman import QUADLET_FOLDER, PodmanError, podman, require_podman
from .._launch.config_files import Managed, current_text, stale_files
from .._launch.units import UNIT_FOLDER, UNIT_PREFIX
from .._runtime.prefix_manifest import read_manifest
from .manager import OnDemandError
from .systemd import Systemd

if TYPE_CHECKING:
    from .base import Stopped
    from .container_driver import ContainerDriver

# Above the units of containers. Not the target of the units of systemd, which goes with the last of them.
CONTAINERS_TARGET = "magi-llama.containers.target"
# Where systemd's generators write units.
GENERATED_FOLDER = "/run/systemd/generator"


class Container(Systemd):
    """What systemd does with units, with units that are generated from quadlet files."""

    name = "container"
    template = "container.container.j2"
    sets_groups = False
    hides_folders = False
    runs_images = True
    suffix = ".container"
    target = CONTAINERS_TARGET

    @property
    def folder(self) -> str:
        return QUADLET_FOLDER

    def check(self, state_dir: str) -> None:
        if not super().runs_here():
            raise PodmanError(
                "Containers as services need systemd as PID 1, which this host lacks: set servers_service_manager to "
                "auto."
            )
        require_podman()

    def runs_here(self) -> bool:
        # Never by itself: it takes an image, which has to be named.
        return False

    def config_paths(self, state_dir: str, server: Mapping[str, Any]) -> dict[str, str]:
        return {self.config_path(state_dir, str(server["name"])): self.template}

    def managed_files(self, state_dir: str) -> list[Managed]:
        return [self.managed(state_dir)]

    def on_demand_programs(self, state_dir: str) -> dict[str, str]:
        raise OnDemandError("Containers are not started on demand: set servers_service_manager to systemd for that.")

    def program_files(self, state_dir: str, servers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        return {}

    def sockets(self, state_dir: str) -> dict[str, int]:
        return {}

    def driver(self, state_dir: str, program: str | None = None) -> ContainerDriver:
        from .container_driver import ContainerDriver

        return ContainerDriver()

    def facts(self, state_dir: str, candidates: Iterable[str | None]) -> dict[str, Any]:
        # systemd's facts are those of the manager of that name.
        return {}

    def foreign_units(self) -> list[str]:
        return []

    def key_path(self, server: str, path: str) -> str:
        # It is mounted at its own path.
        return path

    def restart_triggers(self, stop_timeout: int) -> list[Any]:
        # podman keeps it with the container.
        return [stop_timeout]

    def disabled(self, names: Sequence[str]) -> list[str]:
        # The generator enables the units; the target above them can be disabled.
        target = os.path.join(UNIT_FOLDER, "multi-user.target.wants", self.target)
        return [] if os.path.lexists(target) else list(names)

    def retire(self, state_dir: str, timeout: float) -> None:
        if os.geteuid() == 0:
            self.driver(state_dir).retire_generated(_generated_without_source(), timeout)

    def owned_paths(self, state_dir: str, names: Iterable[str], configs: Sequence[str]) -> list[str]:
        if not os.access(UNIT_FOLDER, os.W_OK):
            return []
        marker = self.managed(state_dir).marker
        halves = [path for path in leftovers(self.folder) if marker in current_text(path)]
        if stale_files([self._of_any_deployment()], configs):
            return halves
        wants = os.path.join(UNIT_FOLDER, "multi-user.target.wants", self.target)
        return [self.common_config_path(state_dir), wants, *halves]

    def owned_trees(self, state_dir: str, names: Iterable[str]) -> list[str]:
        return []

    def units_of_user(self, user: str, state_dir: str) -> list[str]:
        # Their processes are found.
        return []

    def end(self, state_dir: str, paths: Sequence[str], timeout: float) -> list[Stopped]:
        stopped = super().end(state_dir, paths, timeout)
        for image in _own_images(paths):
            # Kept where other containers use it.
            with contextlib.suppress(PodmanError):
                podman("image", "rm", image)
        return stopped


def _own_images(paths: Sequence[str]) -> list[str]:
    """The images that we have loaded or pulled for the prefixes among these paths."""
    manifests = [read_manifest(path) for path in paths if os.path.isdir(path)]
    return sorted({str(one["image"]) for one in manifests if one.get("fetched") and one.get("image")})


def _generated_without_source(folder: str = GENERATED_FOLDER) -> list[str]:
    """The names of servers whose units are still there, and whose quadlet files are gone."""
    names = []
    with contextlib.suppress(OSError):
        for unit in sorted(os.listdir(folder)):
            source = os.path.join(QUADLET_FOLDER, f"{os.path.splitext(unit)[0]}{Container.suffix}")
            is_ours = unit.startswith(UNIT_PREFIX) and unit.endswith(".service")
            if is_ours and not os.path.exists(source) and f"SourcePath={source}\n" in current_text(f"{folder}/{unit}"):
                names.append(unit[len(UNIT_PREFIX) : -len(".service")])
    return names
