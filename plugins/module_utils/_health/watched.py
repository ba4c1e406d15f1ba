# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What the watchdog has seen of servers: watchdog.json in the state directory, which it alone writes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from .._core.documents import NAME, NULL, NUMBER, DocumentError, Fields, Map, check
from .._core.files import write_atomic
from .._core.moments import iso_time
from .._core.ownership import open_trusted

SEEN = Fields(
    {
        "pid": int,
        # answers, busy, suspected (it failed, and not often enough to count as hung), hung, restarted, or skipped: not
        # known.
        "state": str,
        "detail": (str, NULL),
        # Since when, and when it was restarted, within an hour and the last time: seconds since the epoch.
        "since": NUMBER,
        "failures": int,
        "restarts": [NUMBER],
        "last_restart": (*NUMBER, NULL),
    }
)
FOUND = Fields({"state": str, "detail": (str, NULL), "since": str, "restarts": int, "last_restart": (str, NULL)})
MODE = 0o644


def watched_path(state_dir: str) -> str:
    """Path of the file."""
    return os.path.join(state_dir, "watchdog.json")


def read_watched(state_dir: str) -> dict[str, dict[str, Any]]:
    """Return what was seen of each server, by name; empty where the file is missing or damaged: it is seen again."""
    with contextlib.suppress(OSError, ValueError, RecursionError, DocumentError):
        with open_trusted(watched_path(state_dir)) as stream:
            found: dict[str, dict[str, Any]] = json.load(stream)
        check(found, Map(SEEN, NAME), "it")
        return found
    return {}


def write_watched(state_dir: str, seen: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file if its content changes. Raises OSError."""
    if seen != read_watched(state_dir):
        write_atomic(watched_path(state_dir), (json.dumps(seen, indent=2) + "\n").encode(), MODE)


def watched_for_status(state_dir: str) -> dict[str, dict[str, Any]]:
    """Return what a status shows of the watchdog, by server."""
    return {
        name: {
            "state": seen["state"],
            "detail": seen["detail"],
            "since": iso_time(seen["since"]),
            "restarts": len(seen["restarts"]),
            "last_restart": None if seen["last_restart"] is None else iso_time(seen["last_restart"]),
        }
        for name, seen in read_watched(state_dir).items()
    }
