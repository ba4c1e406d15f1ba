# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Servers whose launch config is no longer the one that their process was started with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._launch.config_files import digest, read_file
from .._services.table import find_manager

PENDING = "its launch config changed after its start"


def config_digests(state_dir: str, service_manager: str | None, names: Iterable[str]) -> dict[str, str]:
    """Return the digest of each server's launch config as it is on disk, by name, except unreadable ones."""
    if service_manager is None:
        return {}
    manager, found = find_manager(service_manager), {}
    for name in names:
        try:
            found[name] = digest(read_file(manager.config_path(state_dir, name)))
        except OSError:
            continue
    return found


def restart_pending(
    started: Mapping[str, Mapping[str, Any]], pids: Mapping[str, int | None], digests: Mapping[str, str]
) -> list[str]:
    """Return the servers that run with an earlier launch config than the one on disk.

    started has the process and the digest of each server's last start. A process that its service manager has started
    again after a crash is left out: it may have the new one.
    """
    return [
        name
        for name, start in started.items()
        if name in digests and start["pid"] == pids.get(name) and start["digest"] != digests[name]
    ]
