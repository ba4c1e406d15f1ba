# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the many runs of the tests cheaper, without a change of what they do.

Keeps what Ansible sends to hosts for a module across runs, as it does itself within a run: to find what a module
imports takes longer than the module runs, and every run sends the same. Collects garbage rarely: a run is too short to
need it.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import ansible
from ansible import constants
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__

DOCUMENTATION = """
name: payloads
type: notification
short_description: Keeps the payloads of modules across runs
description: For tests only.
"""

CACHE = Path(os.environ.get("MAGI_PAYLOADS", Path(__file__).parents[3] / ".cache/payloads"))
UNUSED_SECONDS = 86_400


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "payloads"
    CALLBACK_NEEDS_ENABLED = False

    def __init__(self) -> None:
        super().__init__()
        # What exists now is in each of the processes that Ansible forks for the tasks.
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)
        folder = CACHE / digest(map(Path, constants.config.get_config_value("COLLECTIONS_PATHS")))
        if not folder.exists():
            forget_unused()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        # Ansible's own folder for the payloads of one run. If a later version calls it otherwise, nothing is kept.
        Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache").symlink_to(folder)


def digest(collections: Iterable[Path]) -> str:
    """A digest of everything that a payload is made from: Ansible, and the collection's files in these folders."""
    found = hashlib.sha256(f"{ansible.__file__} {__version__}".encode())
    for folder in collections:
        plugins = folder / "ansible_collections/magi/llama/plugins"
        for part in ("modules", "module_utils") if plugins.is_dir() else ():
            for path in sorted((plugins / part).rglob("*.py")):
                status = path.stat()
                found.update(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    return found.hexdigest()[:16]


def forget_unused() -> None:
    for folder in CACHE.glob("*"):
        if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
