# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The driver for containers as services: systemctl, for units whose main process is podman's monitor of a container."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Sequence
from dataclasses import replace

from .._core.podman import QUADLET_FOLDER
from .._launch.units import UNIT_FOLDER, UNIT_PREFIX
from .base import ServiceStatus, Stopped
from .container import CONTAINERS_TARGET
from .systemd_driver import SystemdDriver


class ContainerDriver(SystemdDriver):
    """Drives generated units. A server's process is the child of its unit's main process."""

    target = CONTAINERS_TARGET

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        return {name: with_child(status) for name, status in super().status(names).items()}

    def reload(self, names: Sequence[str]) -> None:
        # Units are generated from the files only then.
        self._checked(["systemctl", "daemon-reload"])
        super().reload(names)

    def stop(self, names: Sequence[str], timeout: float) -> dict[str, Stopped]:
        pids = {name: status.pid for name, status in self.status(names).items()} if names else {}
        stopped = super().stop(names, timeout)
        return {name: replace(one, pid=pids[name]) if one.pid else one for name, one in stopped.items()}

    def retire_generated(self, names: Sequence[str], timeout: float) -> None:
        """Stop and forget servers whose quadlet files are gone, and remove the target once no quadlet is left."""
        self.stop(names, timeout)
        path = os.path.join(UNIT_FOLDER, self.target)
        # Also without names: an interrupted run may have forgotten the servers already.
        if os.path.exists(path) and not glob.glob(os.path.join(glob.escape(QUADLET_FOLDER), f"{UNIT_PREFIX}*")):
            self._run(["systemctl", "disable", "--now", "--quiet", self.target])
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.forget(names)

    def _enabled_units(self, names: Sequence[str]) -> list[str]:
        # The generator enables them.
        return []


def with_child(status: ServiceStatus, proc: str = "/proc") -> ServiceStatus:
    """Return the status with the PID of the container's process; none while podman still creates it."""
    if status.pid is None:
        return status
    return replace(status, pid=child_of(status.pid, proc))


def child_of(pid: int, proc: str = "/proc") -> int | None:
    """Return the PID of the container that this monitor waits for; None if the process has none or is podman itself."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"{proc}/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            if stream.read().strip() != "conmon":
                return None
        with open(f"{proc}/{pid}/task/{pid}/children", encoding="ascii") as stream:
            children = [int(word) for word in stream.read().split()]
        return children[0] if children else None
    return None
