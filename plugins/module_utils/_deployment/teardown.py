# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Taking everything down: which files on a host are ours, and their removal. Models are never among them."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import stat
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .._core.errors import MagiError
from .._core.files import leftovers
from .._core.ownership import is_own_folder, name_of
from .._core.processes import all_processes, command_of
from .._core.run_lock import lock_path
from .._health.observations import ObservedError, observed_path, ready_revisions
from .._health.observations import old_path as old_observations
from .._health.watched import watched_path
from .._launch.api_keys import generated_path, is_generated
from .._launch.config_files import stale_files
from .._launch.units import WATCHDOG_PROGRAM
from .._models.registry_file import is_registry, partial_path
from .._runtime.prefix_manifest import new_prefix, previous_prefix, read_manifest, staged_prefix
from .._runtime.probe import is_cache
from .._services.base import Stopped, terminate
from .._services.table import all_managers, managed_files
from .record import RecordError, deployment_path, read_previous_deployment, read_record
from .version_1 import paths as old_paths

OUR_FOLDER = "magi-llama"
FOREIGN_FILE = "lacks the content that magi.llama writes there"


class TeardownError(MagiError):
    """Something of ours that could not be removed."""


class Owned(NamedTuple):
    """Paths of what we made and what is there, files and whole folders; and what is not ours, each path with why."""

    paths: list[str]
    unmanaged: dict[str, str]


def owned_paths(
    state_dir: str, registry_path: str | None, runtime_prefix: str | None, runtime_cache_path: str | None
) -> Owned:
    """Find what teardown removes. A file whose path is given, or which the user may have made, is ours by its content.

    A folder is ours by a mark. What has no path here is kept.
    """
    configs = stale_files(managed_files(state_dir), [])
    paths = [*configs, deployment_path(state_dir), observed_path(state_dir)]
    paths += [watched_path(state_dir), os.path.join(state_dir, WATCHDOG_PROGRAM)]
    # Any key file but a generated one belongs to the user.
    paths.append(generated_path(state_dir))
    checks = {generated_path(state_dir): is_generated}
    paths += [*old_paths(state_dir), old_observations(state_dir)]
    names = _server_names(state_dir)
    paths += [path for manager in all_managers() for path in manager.owned_paths(state_dir, names, configs)]
    trees = [path for manager in all_managers() for path in manager.owned_trees(state_dir, names)]
    prefixes = [] if runtime_prefix is None else _own_prefixes(runtime_prefix)
    common = list(prefixes)
    if registry_path is not None:
        common += [registry_path, partial_path(registry_path)]
        checks.update(dict.fromkeys(common[-2:], is_registry))
    if runtime_cache_path is not None:
        common.append(runtime_cache_path)
        checks[runtime_cache_path] = is_cache
    folders = {os.path.dirname(path) for path in (registry_path, runtime_cache_path) if path} - {state_dir}
    common += [path for folder in sorted(folders) for path in leftovers(folder)]
    foreign = of_others(common)
    paths += [*leftovers(state_dir), *(path for path in common if path not in foreign)]
    there = [path for path in dict.fromkeys(paths) if os.path.lexists(path)]
    unmanaged = {path: FOREIGN_FILE for path in there if path in checks and not checks[path](path)}
    unmanaged.update((path, "is a folder") for path in there if _is_folder(path) and path not in [*trees, *prefixes])
    if runtime_prefix is not None and os.path.lexists(runtime_prefix) and runtime_prefix not in prefixes:
        unmanaged[runtime_prefix] = "is not a folder that magi.llama has made"
    return Owned([path for path in there if path not in unmanaged], unmanaged)


def _own_prefixes(prefix: str) -> list[str]:
    """Return the prefix and what a run puts next to it, as far as our manifest marks it."""
    candidates = (prefix, previous_prefix(prefix), staged_prefix(prefix))
    # What a run that was killed has left unfinished.
    unfinished = [new_prefix(prefix), *sorted(glob.glob(f"{glob.escape(prefix)}.check-*"))]
    return [
        *(path for path in candidates if read_manifest(path) and is_own_folder(path)),
        *(path for path in unfinished if is_own_folder(path)),
    ]


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def of_others(paths: Iterable[str | None]) -> dict[str, str]:
    """Return the paths, outside of a state directory, that another user made, each with the owner's name.

    The defaults are root's: a user without root has not made them, and cannot remove them.
    """
    uid = os.geteuid()
    owners = {path: os.lstat(path).st_uid for path in paths if path is not None and os.path.lexists(path)}
    return {path: name_of(owner) for path, owner in owners.items() if uid not in (0, owner)}


def _server_names(state_dir: str) -> set[str]:
    """Names of the servers that this state directory has, and of those it had, as far as its files show."""
    names: set[str] = set()
    with contextlib.suppress(ObservedError):
        names |= set(ready_revisions(state_dir))
    with contextlib.suppress(RecordError):
        names |= {str(server["name"]) for server in read_record(state_dir)["servers"]}
    with contextlib.suppress(RecordError):
        previous = read_previous_deployment(state_dir)
        names |= {str(server["name"]) for server in previous.record["servers"]} if previous else set()
    return names


def users_of(user: str, state_dir: str) -> list[str]:
    """What else on this host runs as the user: other units, and processes that are not this state directory's."""
    found = [unit for manager in all_managers() for unit in manager.units_of_user(user, state_dir)]
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return found
    ours_too = {pid for process in all_processes(state_dir) for pid in (process.pid, *process.children)}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            if pid not in ours_too and os.stat(f"/proc/{pid}").st_uid == uid:
                found.append(f"pid {pid} ({command_of(pid)})")
    return found


def take_down(state_dir: str, paths: Sequence[str], timeout: float) -> tuple[dict[str, str], list[str]]:
    """Stop the servers, remove the paths, and let the service managers forget what is gone.

    Returns the signal by which each server ended, by name, and all that was removed.
    """
    names = [(manager, manager.server_names(state_dir)) for manager in all_managers()]
    stopped: list[Stopped] = []
    for manager, _names in names:
        stopped += manager.end(state_dir, paths, timeout)
    # What no manager knows any more.
    stopped += terminate(all_processes(state_dir), state_dir, timeout).values()
    removed = remove(paths, state_dir)
    for manager, gone in names:
        manager.forget(gone)
    return {one.name: one.signal for one in stopped if one.signal is not None}, removed


def require_removable(paths: Sequence[str], state_dir: str) -> None:
    """Raise TeardownError where this user cannot end a server or remove a path; nothing has been touched then."""
    uid = os.geteuid()
    fault = next(
        (f"process {one.pid} of {one.name}" for one in all_processes(state_dir) if uid not in (0, one.uid)), None
    )
    fault = fault or next((path for path in paths if not _is_removable(path)), None)
    if fault:
        raise TeardownError(
            f"This user cannot remove {fault}. Nothing was stopped or removed. Run as the user who deployed, or with "
            "--become."
        )


def _is_removable(path: str) -> bool:
    folder, uid = os.path.dirname(path), os.geteuid()
    try:
        above = os.stat(folder)
        if above.st_mode & stat.S_ISVTX and uid not in (0, above.st_uid, os.lstat(path).st_uid):
            return False
    except FileNotFoundError:
        # It went by itself meanwhile.
        return True
    below = [] if os.path.islink(path) else [inner for inner, folders, files in os.walk(path) if folders or files]
    return os.access(folder, os.W_OK | os.X_OK) and all(
        os.access(inner, os.R_OK | os.W_OK | os.X_OK) for inner in below
    )


def remove(paths: Sequence[str], state_dir: str) -> list[str]:
    """Remove them, and then the folders of ours that this leaves empty; returns all that was removed."""
    removed = list(paths)
    folders = {state_dir, *(os.path.dirname(path) for path in paths)}
    mine = {state_dir}
    for manager in all_managers():
        mine.update(manager.folders(state_dir))
        if manager.is_present(state_dir):
            folders |= {state_dir, *manager.folders(state_dir)}
    # The state goes last, so that a teardown that fails can be repeated.
    state = {deployment_path(state_dir), observed_path(state_dir), *old_paths(state_dir)}
    try:
        for path in sorted(paths, key=lambda path: path in state):
            if _is_folder(path):
                shutil.rmtree(path)
            else:
                # A socket and a PID file go with their supervisord.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    except OSError as error:
        raise TeardownError(f"{error.filename} could not be removed: {error.strerror}.") from error
    with contextlib.suppress(OSError):
        # This run's own.
        os.unlink(lock_path(state_dir))
    for folder in sorted(folders, key=len, reverse=True):
        if folder in mine or os.path.basename(folder) == OUR_FOLDER:
            # One with something of others in it stays, and one that a disk is mounted on.
            with contextlib.suppress(OSError):
                os.rmdir(folder)
                removed.append(folder)
    return removed
