# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What several deployments on one host share: llama-server's prefix and its cache, and the registry.

Another deployment is found by the prefix's manifest, which names the state directories that use it, by its launch
configs, and by its processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from .._core.ownership import OwnershipError, is_trusted
from .._core.processes import programs_by_state
from .._runtime.prefix_manifest import note_in_manifest, read_manifest
from .._services.table import all_managers
from .record import RecordError, deployment_path, read_previous_deployment, read_record
from .version_1 import paths as old_paths


def prefix_of(path: str) -> str:
    """Return the prefix of a llama-server in one."""
    return os.path.dirname(os.path.dirname(path))


def note_use(state_dir: str, record: Mapping[str, Any]) -> None:
    """Note in the prefixes of a record's llama-servers that this state directory uses them."""
    for prefix in {prefix_of(path) for path in _programs(record)}:
        known = _noted(prefix)
        if state_dir not in known:
            note_in_manifest(prefix, used_by=[*known, state_dir])


def kept_for_others(
    state_dir: str, registry_path: str, prefix: str | None, cache_path: str | None, proc: str = "/proc"
) -> dict[str, list[str]]:
    """Return what this deployment must leave to others: each path with the state directories of those that use it."""
    running = programs_by_state(proc)
    # A folder that another user could have made since is not a deployment that would be in the way.
    states = {*running, *(state for state in (_noted(prefix) if prefix else ()) if is_trusted(state))}
    # What root has written into units counts also where its state directory is not read.
    states.update(*(manager.states() for manager in all_managers()))
    states.discard(state_dir)
    users = sorted(state for state in states if running.get(state) or _has_state(state))
    kept = {}
    if prefix is not None:
        kept[prefix] = [state for state in users if _uses(state, prefix, running.get(state, set()))]
    if prefix is not None and cache_path is not None:
        # It describes that llama-server.
        kept[cache_path] = kept[prefix]
    folder = os.path.dirname(registry_path)
    kept[registry_path] = [folder] if folder != state_dir and (folder in users or _has_state(folder)) else []
    return {path: found for path, found in kept.items() if found}


def _uses(state_dir: str, prefix: str, running: Iterable[str]) -> bool:
    """Whether a deployment starts or can return to a llama-server of the prefix; true if its record is unreadable."""
    programs = set(running)
    try:
        previous = read_previous_deployment(state_dir)
        programs |= _programs(read_record(state_dir)) | (_programs(previous.record) if previous else set())
    except (RecordError, OwnershipError):
        return True
    return any(prefix_of(path) == prefix for path in programs)


def _programs(record: Mapping[str, Any]) -> set[str]:
    return {str(server["argv"][0]) for server in record["servers"] if server["argv"]}


def _noted(prefix: str) -> list[str]:
    users = read_manifest(prefix).get("used_by")
    return [str(user) for user in users] if isinstance(users, list) else []


def _has_state(folder: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return any(os.path.lexists(path) for path in (deployment_path(folder), *old_paths(folder)))
    return False
