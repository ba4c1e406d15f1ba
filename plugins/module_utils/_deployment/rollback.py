# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The last good deployment before this one: kept when another takes its place, and returned to on request.

Good is a deployment whose servers have all been ready as they are recorded. One that never was is not kept, so after
any number of failed attempts the way back leads to what worked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._core.errors import MagiError
from .._core.processes import Process
from .._core.stand_ins import stand_ins, without_stand_ins
from .._health.observations import ready_revisions, record_verdicts, refused_revisions
from .._launch.config_files import File, read_file
from .._runtime.prefix_manifest import note_in_manifest, previous_prefix, read_manifest
from .._services.table import deployed_paths, find_manager
from .record import DamagedRecordError, Deployment, RecordError, deployment_path, read_previous_deployment, read_record
from .shared import prefix_of

# The most that a launch config permits.
LAUNCH_CONFIG_MODE = 0o644


class RollbackError(MagiError):
    """A deployment that cannot be returned to; nothing has been touched."""


def is_good(state_dir: str, record: Mapping[str, Any]) -> bool:
    """Whether every server of the record has been ready as it is recorded."""
    ready = ready_revisions(state_dir)
    refused = refused_revisions(state_dir)
    servers = record["servers"]
    return bool(servers) and all(
        # One on demand may not have been started yet.
        refused.get(server["name"]) != server.get("revision")
        if "on_demand" in server
        else ready.get(server["name"]) == server.get("revision")
        for server in servers
    )


def note_good(state_dir: str, record: Mapping[str, Any]) -> None:
    """Note in the prefixes of a good deployment that they are: such a one is not given up for one that is not."""
    if not is_good(state_dir, record):
        return
    for path, identity in Deployment(record, ()).binaries.items():
        prefix = prefix_of(path)
        if read_manifest(prefix).get("identity") == identity:
            note_in_manifest(prefix, good=True)


def note_bad(state_dir: str, names: Sequence[str], refused: Sequence[str] = ()) -> None:
    """Record which servers failed the token probe; refused ones have to answer it before the deployment is good."""
    try:
        record = read_record(state_dir)
        record_verdicts(state_dir, revisions(record), failed=names, refused=refused)
        binaries = Deployment(record, ()).binaries
        worked = read_previous(state_dir).binaries
    except DamagedRecordError:
        return
    except RollbackError:
        worked = {}
    for path, identity in binaries.items():
        # With other launch configs it may have worked, and the way back needs it.
        if worked.get(path) != identity == read_manifest(prefix_of(path)).get("identity"):
            note_in_manifest(prefix_of(path), good=False)


def note_answered(state_dir: str, names: Sequence[str]) -> None:
    """Note that servers which did not work do by now."""
    record = read_record(state_dir)
    record_verdicts(state_dir, revisions(record), answered=names)
    note_good(state_dir, record)


def snapshot_if_good(state_dir: str, record: Mapping[str, Any]) -> Deployment | None:
    """What is deployed now, where it is good and the new record is of another deployment.

    The same servers with the same revisions are the same deployment, also where their launch configs are written again,
    as after an update of the collection: what was deployed before them stays the one to return to. Stand-ins, which a
    run that was interrupted has left or this one will start, are of no deployment.
    """
    try:
        now = _read_without_stand_ins(state_dir)
    except DamagedRecordError:
        return None
    if not is_good(state_dir, now) or revisions(now) == revisions({"servers": without_stand_ins(record["servers"])}):
        return None
    try:
        deployment = Deployment(now, _deployed_files(state_dir, now))
        for file in deployment.files:
            file.content.decode()
    except (OSError, ValueError):
        # A file was removed or edited: this is no longer the deployment that was good.
        return None
    return deployment


def _read_without_stand_ins(state_dir: str) -> dict[str, Any]:
    record = read_record(state_dir)
    return {**record, "servers": without_stand_ins(record["servers"])}


def _deployed_files(state_dir: str, record: Mapping[str, Any]) -> list[File]:
    """The launch configs of a record's servers, without those of the stand-ins that were deployed with them."""
    manager = find_manager(str(record["service_manager"]))
    left_out = {manager.config_path(state_dir, name) for name in stand_ins(read_record(state_dir)["servers"])}
    paths = deployed_paths(state_dir, record["service_manager"])
    return [read_file(path) for path in paths if path not in left_out]


def revisions(record: Mapping[str, Any]) -> dict[str, Any]:
    """Each server's revision."""
    return {server["name"]: server.get("revision") for server in record["servers"]}


def deployment_before(state_dir: str) -> Deployment:
    """The deployment to return to. Raises RollbackError.

    Where only the llama-server of the one that is here was replaced, as by a run that ended there, it is this one.
    """
    try:
        now = _read_without_stand_ins(state_dir)
        if is_good(state_dir, now):
            deployment = Deployment(now, _deployed_files(state_dir, now))
            if any(_was_replaced(path, identity) for path, identity in deployment.binaries.items()):
                return deployment
    except (DamagedRecordError, OSError):
        pass
    return read_previous(state_dir)


def _was_replaced(path: str, identity: str) -> bool:
    """Whether a llama-server was in its prefix before, and another is there now."""
    prefix = prefix_of(path)
    before = read_manifest(previous_prefix(prefix))
    return before.get("identity") == identity != read_manifest(prefix).get("identity")


def read_previous(state_dir: str) -> Deployment:
    """The deployment that is kept. Raises RollbackError."""
    try:
        deployment = read_previous_deployment(state_dir)
    except DamagedRecordError as error:
        raise RollbackError(f"{error} Until then there is nothing to roll back to.") from error
    except RecordError as error:
        raise RollbackError(str(error)) from error
    if deployment is None:
        raise RollbackError(
            f"There is nothing to roll back to: {deployment_path(state_dir)} keeps a deployment whose servers were all "
            "ready when another replaces it, and has none. Fix the cause and run site.yml."
        )
    return _with_own_files(state_dir, deployment)


def _with_own_files(state_dir: str, deployment: Deployment) -> Deployment:
    """The deployment with the paths and modes that launch configs have here. Raises RollbackError where it has others.

    The file is an input like any other: it names no path, mode or program that the collection would not.
    """
    manager = find_manager(str(deployment.record["service_manager"]))
    own = {path for server in deployment.record["servers"] for path in manager.config_paths(state_dir, server)}
    common = {manager.common_config_path(state_dir), *manager.program_files(state_dir, deployment.record["servers"])}
    marker = manager.managed(state_dir).marker
    faults = [
        f"{file.path}, which is not a launch config of this deployment"
        for file in deployment.files
        if file.path not in common and (file.path not in own or marker not in file.content.decode())
    ]
    faults += [
        f"{path!r}, which is not the path of a program"
        for path in deployment.binaries
        if not path.startswith("/") or ".." in path.split("/")
    ]
    if faults:
        raise RollbackError(
            f'{deployment_path(state_dir)} names {faults[0]}. Nothing was changed. Remove its part "previous", and '
            "run site.yml with the profile of then."
        )
    # Not executable, and writable for the owner alone.
    files = [replace(file, mode=file.mode & LAUNCH_CONFIG_MODE) for file in deployment.files]
    return replace(deployment, files=files)


def prefixes_to_restore(deployment: Deployment, identity_of: Any, keep_binary: bool = False) -> list[str]:
    """The prefixes in which the llama-server before is to come back. Raises RollbackError where one is not kept.

    identity_of returns the identity of the llama-server at a path, None if none runs there.
    """
    prefixes = []
    for path, wanted in deployment.binaries.items():
        prefix = prefix_of(path)
        manifest, before = read_manifest(prefix), read_manifest(previous_prefix(prefix))
        if manifest.get("identity") == wanted or identity_of(path) == wanted or keep_binary:
            continue
        if before.get("identity") == wanted:
            prefixes.append(prefix)
        elif manifest or before:
            raise RollbackError(
                f"The llama-server that was in {prefix} is not kept any more. Install it again with site.yml and the "
                "runtime_release_url or runtime_portable_suite of then; -e rollback_keep_binary=true returns the "
                "launch configs alone."
            )
        else:
            raise RollbackError(
                f"{path} has changed since and is not managed here: restore the previous one with the package "
                "manager or by hand, and run this again; -e rollback_keep_binary=true returns the launch configs alone."
            )
    return prefixes


def planned(
    deployment: Deployment,
    now: Sequence[Mapping[str, Any]],
    running: Mapping[str, Process],
    sockets: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The deployment's servers with what must happen to have them again, and those of now that are to stop.

    A process carries the revision of all that it was launched with. sockets are the servers that a request would start.
    """
    servers = []
    before = revisions({"servers": now})
    for server in deployment.record["servers"]:
        process = running.get(server["name"])
        action, reason = "restart", "goes back to the deployment before"
        if process is None:
            action, reason = "start", "not running"
            if server["name"] in sockets:
                action, reason = "restart", "goes back to the deployment before"
                if "on_demand" in server and before.get(server["name"]) == server["revision"]:
                    action, reason = "keep", "sleeps until a request"
        elif process.env.get("MAGI_LLAMA_REVISION") == server["revision"]:
            action, reason = "keep", "runs as it did before"
        servers.append({**server, "action": action, "reason": reason})
    names = {server["name"] for server in servers}
    known = {name: {"name": name, "model_id": name, "port": None, "argv": list(running[name].argv)} for name in running}
    known.update({str(server["name"]): dict(server) for server in now})
    return servers + [
        {**server, "action": "stop", "reason": "was not there before"}
        for name, server in sorted(known.items())
        if name not in names
    ]


def refuse_current(
    state_dir: str, deployment: Deployment, now: Sequence[Mapping[str, Any]], servers: Sequence[Mapping[str, Any]]
) -> None:
    """Raise RollbackError where the deployment to return to is the one that is deployed and runs.

    now are the deployed servers, servers those of the deployment with their actions.
    """
    if revisions(deployment.record) != revisions({"servers": now}):
        return
    if any(server["action"] != "keep" for server in servers):
        # A rollback that was interrupted is completed.
        return
    raise RollbackError(
        f"There is nothing to roll back to: the deployment that {deployment_path(state_dir)} keeps as the previous one "
        f"(profile {deployment.record['profile']}) is the one that runs, as after a rollback. For another one set its "
        "profile and models and run site.yml."
    )


def starting(deployment: Deployment) -> dict[str, Any]:
    """How the profile of the deployment starts its servers."""
    servers = deployment.record["servers"]
    start = deployment.record.get("start") or {}
    return {
        "concurrent": bool(start.get("concurrent", True)),
        "max_startup_time": max((int(server["max_startup_time"]) for server in servers), default=120),
        "readiness_check_interval": start.get("readiness_check_interval", 2),
    }
