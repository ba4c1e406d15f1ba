# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Writing a host's state: deployment.json in the place of what older versions had, together with launch configs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .._core.digests import digest_of
from .._core.stand_ins import stand_ins
from .._core.version import COLLECTION_VERSION
from .._health.observations import migrate_observations
from .._health.observations import old_path as old_observations
from .._launch.config_files import File, LaunchConfigError, digest, file_at, write_all
from .._services.table import deployed_paths, find_manager
from .record import (
    DEPLOYMENT,
    DamagedRecordError,
    Deployment,
    deployment_path,
    intended_of,
    read_configs,
    read_intended,
    read_previous_deployment,
    read_record,
)
from .version_1 import paths as old_paths

MODE = 0o644


def state_files(
    state_dir: str,
    record: Mapping[str, Any],
    previous: Deployment | None = None,
    intended: Mapping[str, str] | None = None,
    configs: Sequence[File] | None = None,
) -> tuple[list[File], list[str]]:
    """The state files to write for a record, and the paths of those of older versions to remove afterwards.

    Both are empty where the state says so already. previous is the deployment before, by default the one that is there;
    intended is by default that all servers of the record run. configs are all launch configs of the record, by default
    those that are recorded. Raises RecordError.
    """
    if previous is None:
        with contextlib.suppress(DamagedRecordError):
            previous = read_previous_deployment(state_dir)
    content = {"deployed": dict(record), "intended": dict(intended if intended is not None else intended_of(record))}
    digests = _recorded_configs(state_dir) if configs is None else _digests(configs)
    file = deployment_file(state_dir, {**content, "configs": digests, "previous": _previous_part(previous)})
    observed = migrate_observations(state_dir)
    files = [*([] if _is_current(file) else [file]), *([observed] if observed else [])]
    return files, [path for path in _old_paths(state_dir) if os.path.lexists(path)]


def deployment_file(state_dir: str, content: Mapping[str, Any]) -> File:
    """The file with its parts deployed, intended, configs and previous. Raises DocumentError if one is not allowed."""
    text = json.dumps(DEPLOYMENT.load(DEPLOYMENT.stamp(content)), indent=2) + "\n"
    return File(deployment_path(state_dir), text.encode(), MODE)


def _digests(configs: Sequence[File]) -> dict[str, str]:
    return {file.path: digest(file) for file in sorted(configs, key=lambda file: file.path)}


def _recorded_configs(state_dir: str) -> dict[str, str]:
    with contextlib.suppress(DamagedRecordError):
        return read_configs(state_dir)
    return {}


def _previous_part(deployment: Deployment | None) -> dict[str, Any] | None:
    if deployment is None:
        return None
    files = [{"path": file.path, "content": file.content.decode(), "mode": file.mode} for file in deployment.files]
    return {"deployed": dict(deployment.record), "files": files}


def _is_current(file: File) -> bool:
    """Whether the file has this content already. Another version of the collection alone does not count."""
    found = file_at(file.path)
    if found is None or found.mode != file.mode:
        return False
    content = _json(found)
    return "collection_version" in content and {**content, "collection_version": COLLECTION_VERSION} == _json(file)


def _json(file: File) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(file.content)
        if isinstance(content, dict):
            return content
    return {}


def note_intended(state_dir: str, intended: Mapping[str, str]) -> None:
    """Note which servers are to be started or stopped from now on. Raises RecordError.

    A disk on which it cannot be written does not keep them from being stopped.
    """
    record = read_record(state_dir)
    before = intended_of(record)
    with contextlib.suppress(DamagedRecordError):
        before.update({name: value for name, value in read_intended(state_dir).items() if name in before})
    files, remove = state_files(
        state_dir, record, intended={name: intended.get(name, now) for name, now in before.items()}
    )
    with contextlib.suppress(LaunchConfigError):
        write_all(files, remove)


def drop_stand_ins(state_dir: str, names: Collection[str]) -> dict[str, Any]:
    """Return the record without those stand-ins, and remove them from the state and from the service manager's folder.

    What remains is the same deployment. Raises RecordError.
    """
    record = read_record(state_dir)
    leaving = [name for name in stand_ins(record["servers"]) if name in names]
    if not leaving:
        return record
    manager = find_manager(record["service_manager"])
    paths = [manager.config_path(state_dir, name) for name in leaving]
    record["servers"] = [server for server in record["servers"] if server["name"] not in leaving]
    content = {
        "deployed": record,
        "intended": {name: state for name, state in read_intended(state_dir).items() if name not in leaving},
        "configs": {path: value for path, value in read_configs(state_dir).items() if path not in paths},
        "previous": _previous_part(read_previous_deployment(state_dir)),
    }
    write_all([deployment_file(state_dir, content)], paths)
    return record


def deployed(state_dir: str, service_manager: str) -> dict[str, str]:
    """The state and every launch config of this state directory, each path with the digest of what the file says.

    From it the controller knows whether there is anything to write, without sending it all.
    """
    found = [file_at(path) for path in [*_old_paths(state_dir), *deployed_paths(state_dir, service_manager)]]
    digests = {file.path: digest(file) for file in found if file is not None}
    state = file_at(deployment_path(state_dir))
    if state is not None and state.mode == MODE:
        content = _json(state)
        if content.get("schema_version") == DEPLOYMENT.version and {"collection_version", "previous"} <= content.keys():
            digests[state.path] = digest_of([content.get(part) for part in ("deployed", "intended", "configs")])
    return digests


def planned(state_dir: str, record: Mapping[str, Any], configs: Sequence[File]) -> dict[str, str]:
    """What deployed returns where a plan's record and launch configs are on the host already."""
    digests = _digests(configs)
    return {deployment_path(state_dir): digest_of([record, intended_of(record), digests]), **digests}


def of_configs(state_dir: str, digests: Mapping[str, str]) -> dict[str, str]:
    """The part of what deployed or planned returns that is about launch configs."""
    state = {deployment_path(state_dir), *_old_paths(state_dir)}
    return {path: value for path, value in digests.items() if path not in state}


def _old_paths(state_dir: str) -> list[str]:
    return [*old_paths(state_dir), old_observations(state_dir)]
