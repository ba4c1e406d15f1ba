# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long servers took to become ready, kept beside the record: a later run cannot see it any more."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ._files import write_atomic
from ._health import Outcome


def readiness_path(state_dir: str) -> str:
    """Where it is kept."""
    return os.path.join(state_dir, "ready.json")


def ready_revisions(state_dir: str) -> dict[str, Any]:
    """Each server's revision with which it was ready last."""
    known = _read(readiness_path(state_dir))
    return {name: seen.get("revision") for name, seen in known.items() if isinstance(seen, dict)}


def remember(
    state_dir: str, outcomes: Sequence[Outcome], revisions: Mapping[str, str], *, write: bool = True
) -> list[dict[str, Any]]:
    """The outcomes as dicts with became_ready, and with the seconds seen when their processes became ready.

    revisions are those that the servers' processes were launched with.
    """
    path = readiness_path(state_dir)
    known, before = _read(path), _read(path)
    result = []
    for outcome in outcomes:
        entry = {**outcome.as_dict(), "became_ready": False}
        seen = known.get(outcome.name)
        if outcome.is_ready and seen and seen.get("pid") == outcome.pid:
            entry["seconds_to_ready"] = seen.get("seconds")
        elif outcome.is_ready:
            entry["became_ready"] = True
            known[outcome.name] = {"pid": outcome.pid, "seconds": outcome.seconds_to_ready}
        if outcome.is_ready and outcome.name in revisions:
            known[outcome.name]["revision"] = revisions[outcome.name]
        result.append(entry)
    if write and known != before:
        # Only a convenience: a folder that cannot be written must not spoil the answer.
        with contextlib.suppress(OSError):
            write_atomic(path, json.dumps(known).encode(), 0o644)
    return result


def forget_revisions(state_dir: str, names: Sequence[str]) -> None:
    """Forget with which revision servers were ready."""
    path = readiness_path(state_dir)
    known = _read(path)
    kept = {
        name: {key: value for key, value in seen.items() if key != "revision"} if name in names else seen
        for name, seen in known.items()
    }
    if kept != known:
        with contextlib.suppress(OSError):
            write_atomic(path, json.dumps(kept).encode(), 0o644)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            known = json.load(stream)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
