# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What was seen of servers' readiness, kept beside the record: a later run cannot see it any more.

For each server its process with the seconds that it took, the revision with which it was ready last, and the revision
with which it was ready and yet gave no token.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.files import write_atomic
from .wait import Outcome


def readiness_path(state_dir: str) -> str:
    """Where it is kept."""
    return os.path.join(state_dir, "ready.json")


def ready_revisions(state_dir: str) -> dict[str, Any]:
    """Each server's revision with which it was ready last."""
    known = _read(state_dir)
    return {name: seen.get("revision") for name, seen in known.items()}


def update_observations(
    state_dir: str, outcomes: Sequence[Outcome], revisions: Mapping[str, str], *, write: bool = True
) -> list[dict[str, Any]]:
    """The outcomes as dicts with became_ready, and with the seconds seen when their processes became ready.

    revisions are those that the servers' processes were launched with.
    """
    known = _read(state_dir)
    result = []
    for outcome in outcomes:
        entry = {**outcome.as_dict(), "became_ready": False}
        seen = known.get(outcome.name)
        if outcome.is_ready and seen and seen.get("pid") == outcome.pid:
            entry["seconds_to_ready"] = seen.get("seconds")
        elif outcome.is_ready:
            entry["became_ready"] = True
            started = (seen or {}).get("started") or {}
            if started.get("pid") == outcome.pid:
                entry["seconds_to_ready"] = started["seconds"]
            known[outcome.name] = {"pid": outcome.pid, "seconds": entry["seconds_to_ready"]}
            if seen and "refused" in seen:
                known[outcome.name]["refused"] = seen["refused"]
        revision = revisions.get(outcome.name)
        if outcome.is_ready and revision is not None and revision != known[outcome.name].get("refused"):
            known[outcome.name]["revision"] = revision
        result.append(entry)
    if write:
        _write(state_dir, known)
    return result


def note_seconds(state_dir: str, seconds: Mapping[str, tuple[int | None, float]]) -> None:
    """Note in how many seconds processes became ready that were seen to while others were being started, by name."""
    known = _read(state_dir)
    for name, (pid, took) in seconds.items():
        known.setdefault(name, {})["started"] = {"pid": pid, "seconds": took}
    _write(state_dir, known)


def refused_revisions(state_dir: str) -> dict[str, Any]:
    """Each server's revision with which it gave no token although it was ready."""
    known = _read(state_dir)
    return {name: seen["refused"] for name, seen in known.items() if "refused" in seen}


def record_verdicts(
    state_dir: str,
    revisions: Mapping[str, Any],
    *,
    failed: Sequence[str] = (),
    refused: Sequence[str] = (),
    answered: Sequence[str] = (),
) -> None:
    """Note which servers gave no token, which of these by their own fault, and which that were refused give one now.

    Being ready makes up for the first, only a token for the second. revisions are those that they are deployed with.
    """
    known = _read(state_dir)
    for name in failed:
        known.get(name, {}).pop("revision", None)
    for name in refused:
        known.setdefault(name, {})["refused"] = revisions.get(name)
    for name in answered:
        if name in known and "refused" in known[name] and known[name]["refused"] == revisions.get(name):
            known[name]["revision"] = known[name].pop("refused")
    _write(state_dir, known)


def _read(state_dir: str) -> dict[str, dict[str, Any]]:
    try:
        with open(readiness_path(state_dir), encoding="utf-8") as stream:
            known = json.load(stream)
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: seen for name, seen in known.items() if isinstance(seen, dict)}


def _write(state_dir: str, known: Mapping[str, Any]) -> None:
    """Write it where it is not so already."""
    if known == _read(state_dir):
        return
    # Only a convenience: a folder that cannot be written must not spoil the answer.
    with contextlib.suppress(OSError):
        write_atomic(readiness_path(state_dir), json.dumps(known).encode(), 0o644)
