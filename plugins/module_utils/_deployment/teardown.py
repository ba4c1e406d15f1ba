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
import re
import shutil
from collections.abc import Sequence

from .._core.errors import MagiError
from .._core.files import leftovers
from .._core.processes import STATE_MARKER, all_processes, command_of
from .._core.run_lock import lock_path
from .._health.observations import readiness_path, ready_revisions
from .._launch.config_files import Managed, current_text, managed_files, stale_files
from .._launch.units import TARGET, UNIT_FOLDER, UNIT_PREFIX
from .._models.registry_file import partial_path
from .._runtime.prefix_manifest import read_manifest
from .._services.supervision import is_ours
from .._services.supervisor import log_files, own_files
from .record import RecordError, read_record, record_path
from .rollback import RollbackError, previous_path, read_previous

OUR_FOLDER = "magi-llama"


class TeardownError(MagiError):
    """Something of ours that could not be removed."""


def unit_servers(state_dir: str) -> list[str]:
    """Names of the servers that have a systemd unit of this state directory."""
    units = [entry for entry in managed_files(state_dir) if entry.folder == UNIT_FOLDER]
    return [os.path.basename(path)[len(UNIT_PREFIX) : -len(".service")] for path in stale_files(units, [])]


def target_path() -> str:
    """Where the target of all servers lies."""
    return os.path.join(UNIT_FOLDER, TARGET)


def owned_paths(
    state_dir: str, registry_path: str, runtime_prefix: str | None, runtime_cache_path: str | None
) -> list[str]:
    """Paths of what we made and what is there, files and whole folders; prefixes without our manifest are not ours."""
    managed = managed_files(state_dir)
    paths = stale_files(managed, [])
    halves = leftovers(UNIT_FOLDER)
    if not stale_files([Managed(UNIT_FOLDER, f"{UNIT_PREFIX}*.service", f"{STATE_MARKER}=")], paths):
        # No other state directory on this host has units: the target goes with the last of them.
        paths += [os.path.join(UNIT_FOLDER, f"{TARGET}.wants"), target_path()]
        paths += [os.path.join(UNIT_FOLDER, "multi-user.target.wants", TARGET)]
    else:
        # Another's run may be writing one just now.
        halves = [path for path in halves if managed[0].marker in current_text(path)]
    paths += [*halves, record_path(state_dir), readiness_path(state_dir), previous_path(state_dir)]
    paths += [registry_path, partial_path(registry_path)]
    # The names of supervisor's folders are plain ones: in a state directory that others use too they may be theirs.
    paths += [*own_files(state_dir), *log_files(state_dir, _server_names(state_dir))]
    folders = [state_dir, os.path.join(state_dir, "supervisor", "conf.d"), os.path.dirname(registry_path)]
    if runtime_prefix is not None:
        candidates = (runtime_prefix, *(f"{runtime_prefix}.{part}" for part in ("previous", "staged")))
        paths += [path for path in candidates if read_manifest(path)]
        # What a run that was killed has left unfinished.
        paths += [path for path in [f"{runtime_prefix}.new"] if os.path.isdir(path)]
        paths += sorted(glob.glob(f"{glob.escape(runtime_prefix)}.check-*"))
    if runtime_cache_path is not None:
        paths.append(runtime_cache_path)
        folders.append(os.path.dirname(runtime_cache_path))
    paths += [path for folder in folders for path in leftovers(folder)]
    return [path for path in dict.fromkeys(paths) if os.path.lexists(path)]


def _server_names(state_dir: str) -> set[str]:
    """Names of the servers that this state directory has, and of those it had, as far as anything tells."""
    names = set(ready_revisions(state_dir))
    with contextlib.suppress(RecordError):
        names |= {str(server["name"]) for server in read_record(state_dir)["servers"]}
    with contextlib.suppress(RollbackError):
        names |= {str(server["name"]) for server in read_previous(state_dir).record["servers"]}
    return names


def users_of(user: str, state_dir: str) -> list[str]:
    """What else on this host runs as the user: other units, and processes that are not this state directory's."""
    mine = {f"{UNIT_PREFIX}{name}.service" for name in unit_servers(state_dir)}
    line = re.compile(rf"^User={re.escape(user)}\s*$", re.MULTILINE)
    found = [
        name
        for name in sorted(_listdir(UNIT_FOLDER))
        if name.endswith(".service") and name not in mine and line.search(current_text(os.path.join(UNIT_FOLDER, name)))
    ]
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


def remove(paths: Sequence[str], state_dir: str) -> list[str]:
    """Remove them, and then the folders of ours that this leaves empty; returns all that was removed."""
    removed = list(paths)
    supervisor = os.path.join(state_dir, "supervisor")
    folders = {state_dir, *(os.path.dirname(path) for path in paths)}
    mine = {state_dir, supervisor, os.path.join(supervisor, "conf.d"), os.path.join(state_dir, "log")}
    if is_ours(state_dir):
        folders |= mine
    with contextlib.suppress(OSError):
        # This run's own.
        os.unlink(lock_path(state_dir))
    try:
        for path in paths:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                # A socket and a PID file go with their supervisord.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    except OSError as error:
        raise TeardownError(f"{error.filename} could not be removed: {error.strerror}.") from error
    for folder in sorted(folders, key=len, reverse=True):
        if folder in mine or os.path.basename(folder) == OUR_FOLDER:
            # One with something of others in it stays, and one that a disk is mounted on.
            with contextlib.suppress(OSError):
                os.rmdir(folder)
                removed.append(folder)
    return removed


def _listdir(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
