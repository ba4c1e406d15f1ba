# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Launch configs that are not as they were deployed, or not as a plan has them; by the digests that are recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._launch.config_files import changed_files, stale_files
from .._services.table import find_manager, managed_files
from .record import read_configs


def config_drift(state_dir: str, record: Mapping[str, Any]) -> dict[str, str]:
    """What happened to launch configs since the record was deployed, by server, or by path for the others.

    Empty where an older version of the collection has recorded no digests. Raises RecordError.
    """
    recorded = read_configs(state_dir)
    if not recorded:
        return {}
    names = _names(state_dir, record["service_manager"], record["servers"])
    found = {
        names.get(path, path): f"its launch config {path} was {what} since it was deployed"
        if path in names
        else f"{what} since it was deployed"
        for path, what in changed_files(recorded).items()
    }
    stale = stale_files(managed_files(state_dir), list(recorded))
    return {**found, **dict.fromkeys(stale, "a launch config that was not deployed")}


def planned_drift(
    state_dir: str,
    service_manager: str,
    servers: Iterable[Mapping[str, Any]],
    found: Mapping[str, str],
    planned: Mapping[str, str],
) -> dict[str, str]:
    """What a plan would do to launch configs, by server, or by path for the others.

    servers are those of the plan; found and planned are the digests of launch configs, by path.
    """
    names = _names(state_dir, service_manager, servers)
    written = [path for path in planned if found.get(path) != planned[path]]
    removed = [path for path in found if path not in planned]
    return {
        **{names.get(path, path): f"to write the launch config {path}" for path in written},
        **{names.get(path, path): f"to remove the launch config {path}" for path in removed},
    }


def _names(state_dir: str, service_manager: str | None, servers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Names of the servers by the paths of their launch configs."""
    if service_manager is None:
        return {}
    manager = find_manager(service_manager)
    return {path: str(server["name"]) for server in servers for path in manager.config_paths(state_dir, server)}
