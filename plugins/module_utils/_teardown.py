# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking everything down: which files on a host are ours, and their removal. Models are never among them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence

from ._errors import MagiError
from ._launch import TARGET, UNIT_FOLDER, UNIT_PREFIX, Managed, managed_files, superfluous
from ._lock import lock_path
from ._readiness import readiness_path
from ._record import record_path
from ._registry import partial_path
from ._rollback import previous_path
from ._runtime_install import read_manifest

OUR_FOLDER = "magi-llama"


class TeardownError(MagiError):
    """Something of ours that could not be removed."""


def unit_servers(state_dir: str) -> list[str]:
    """Names of the servers that have a systemd unit of this state directory."""
    units = [Managed(**entry) for entry in managed_files(state_dir) if entry["folder"] == UNIT_FOLDER]
    return [os.path.basename(path)[len(UNIT_PREFIX) : -len(".service")] for path in superfluous(units, [])]


def target_path() -> str:
    """Where the target of all servers lies."""
    return os.path.join(UNIT_FOLDER, TARGET)


def ours(state_dir: str, registry_path: str, runtime_prefix: str | None, runtime_cache_path: str | None) -> list[str]:
    """Paths of what we made and what is there, files and whole folders; prefixes without our manifest are not ours."""
    units = superfluous([Managed(**entry) for entry in managed_files(state_dir)], [])
    others = [name for name in _listdir(UNIT_FOLDER) if name.startswith(UNIT_PREFIX) and name.endswith(".service")]
    if len(others) == len([path for path in units if path.startswith(UNIT_FOLDER)]):
        # No other state directory on this host has units: the target goes with the last of them.
        units += [os.path.join(UNIT_FOLDER, f"{TARGET}.wants"), target_path()]
        units += [os.path.join(UNIT_FOLDER, "multi-user.target.wants", TARGET)]
    paths = [*units, record_path(state_dir), readiness_path(state_dir), previous_path(state_dir)]
    paths += [registry_path, partial_path(registry_path)]
    paths += [os.path.join(state_dir, name) for name in ("supervisor", "log")]
    if runtime_prefix is not None:
        candidates = (runtime_prefix, *(f"{runtime_prefix}.{part}" for part in ("previous", "staged", "new")))
        paths += [path for path in candidates if read_manifest(path)]
    if runtime_cache_path is not None:
        paths.append(runtime_cache_path)
    return [path for path in paths if os.path.lexists(path)]


def remove(paths: Sequence[str], state_dir: str) -> list[str]:
    """Remove them, and then the folders of ours that this leaves empty; returns all that was removed."""
    removed = list(paths)
    with contextlib.suppress(OSError):
        # This run's own.
        os.unlink(lock_path(state_dir))
    try:
        for path in paths:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    except OSError as error:
        raise TeardownError(f"{error.filename} could not be removed: {error.strerror}.") from error
    folders = {state_dir, *(os.path.dirname(path) for path in paths)}
    for folder in sorted(folders, key=len, reverse=True):
        mine = folder == state_dir or os.path.basename(folder) == OUR_FOLDER
        if mine and os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)
            removed.append(folder)
    return removed


def _listdir(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
