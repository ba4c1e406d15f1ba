# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What of the host's files a server's container must have: the folders of its files, at their own paths.

Read on the host, as links are followed: a link's target has to be in the container too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .._core.argv import WRITE_FLAGS, flag_values
from .._core.links import is_below, stages
from .hidden import files_of

# The image's own folders: mounted over, its llama-server would lack its libraries. Of these only the file is mounted.
IMAGE_FOLDERS = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")
_WIDE = ("/", "/home", "/mnt", "/media", "/opt", "/root", "/srv", "/tmp", "/var", "/var/lib", "/var/tmp")
_KEY_FLAG = "--api-key-file"


def mounted_files(argv: Sequence[str]) -> dict[str, Any]:
    """Return what a container with this command line mounts, in the shape of what a unit's sandbox shows.

    "shows" are paths with their source, and whether the server writes there; "folders" are all folders on the way.
    """
    writes, keys = set(flag_values(argv, WRITE_FLAGS)), set(flag_values(argv, [_KEY_FLAG]))
    shows: dict[str, bool] = {}
    folders: set[str] = set()
    for word in argv[1:]:
        for path in files_of(word, word in writes):
            passed = stages(path)
            folders.update(os.path.dirname(stage) for stage in passed)
            for stage in passed:
                place = stage if word in keys or word in writes else _place_of(stage)
                if os.path.exists(place):
                    shows[place] = shows.get(place, False) or word in writes
    return {
        "shows": [
            {"path": path, "source": os.path.realpath(path), "writable": is_writable}
            for path, is_writable in sorted(shows.items())
            if not _is_in_another(path, is_writable, shows)
        ],
        "folders": sorted(folder for folder in folders if not is_below(folder, ("/usr",)) and folder != "/"),
    }


def _place_of(path: str) -> str:
    """The folder of a file, or the file itself where the folder has more than models."""
    folder = os.path.dirname(path)
    return path if folder in _WIDE or is_below(folder, IMAGE_FOLDERS) else folder


def _is_in_another(path: str, is_writable: bool, shows: dict[str, bool]) -> bool:
    """Whether a folder that is mounted has this path in it, as the same file and with the same right."""
    return any(
        folder != path
        and is_below(path, [folder])
        and writes == is_writable
        and os.path.realpath(path) == os.path.realpath(folder) + path[len(folder) :]
        for folder, writes in shows.items()
    )
