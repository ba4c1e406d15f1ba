# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Persisted readiness observations: observed.json in the state directory.

For each server: its process, the seconds that it took to become ready and the time since when it is ready, its
restarts, its memory as estimated and as loaded, its speed when it was probed, the best speed that a rollout's
gate has accepted, the last revision that was ready, the revision that was ready but did not answer, and a stuck stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.boot import boot_id
from .._core.documents import NAME, NULL, NUMBER, Document, DocumentError, Fields, Map, NewerDocumentError, check
from .._core.errors import MagiError
from .._core.files import write_atomic
from .._core.ownership import open_trusted
from .._launch.config_files import File
from .breakdown import MEMORY
from .outcome import Outcome

if TYPE_CHECKING:
    from .._services.transitions import Result

_SECONDS = (*NUMBER, NULL)
STUCK_STOP = Fields({"signal": str, "seconds": NUMBER})
# What is known of a server besides its process.
_LASTING = ("refused_revision", "stuck_stop", "started_config", "accepted_speed")
# What still holds after a reboot, when its PID may be that of another process.
_LASTING_OVER_BOOTS = ("ready_revision", "refused_revision", "stuck_stop", "accepted_speed")
_SERVER = Fields(
    {},
    {
        "pid": (int, NULL),
        "seconds_to_ready": _SECONDS,
        "ready_since": (str, NULL),
        "restarts": int,
        "ready_revision": (str, NULL),
        "refused_revision": (str, NULL),
        "started": Fields({"pid": (int, NULL), "seconds_to_ready": NUMBER}),
        "stuck_stop": STUCK_STOP,
        "memory": MEMORY,
        "tokens_per_second": NUMBER,
        "accepted_speed": NUMBER,
        "started_config": Fields({"pid": int, "digest": str}),
    },
)
# Version 1 was ready.json, without a schema version or collection version.
OBSERVED = Document("observed", 2, Fields({"collection_version": str, "servers": Map(_SERVER, NAME)}, {"boot": str}))
MODE = 0o644

Known = dict[str, dict[str, Any]]


class ObservedError(MagiError):
    """Raised for observations that a newer version of the collection wrote."""


def observed_path(state_dir: str) -> str:
    """Path of the file."""
    return os.path.join(state_dir, "observed.json")


def old_path(state_dir: str) -> str:
    """Path of the file that older versions used instead."""
    return os.path.join(state_dir, "ready.json")


def ready_revisions(state_dir: str) -> dict[str, Any]:
    """Return the last revision with which each server was ready. Raises ObservedError."""
    return {name: seen.get("ready_revision") for name, seen in _read(state_dir).items()}


def update_observations(
    state_dir: str, outcomes: Sequence[Outcome], revisions: Mapping[str, str], *, write: bool = True
) -> list[dict[str, Any]]:
    """Save the outcomes; return them as dicts with became_ready and the seconds to readiness that were observed.

    revisions are those with which the servers' processes were launched. Raises ObservedError.
    """
    known = _read(state_dir)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    result = []
    for outcome in outcomes:
        entry = {**outcome.as_dict(), "became_ready": False}
        if outcome.state == "sleeping":
            # It has no process that anything could be known of.
            result.append(entry)
            continue
        seen = known.get(outcome.name)
        if outcome.is_ready and seen and seen.get("pid") == outcome.pid:
            entry["seconds_to_ready"] = seen.get("seconds_to_ready")
            seen["restarts"] = outcome.restarts
        elif outcome.is_ready:
            entry["became_ready"] = True
            started = (seen or {}).get("started") or {}
            if started.get("pid") == outcome.pid:
                entry["seconds_to_ready"] = started["seconds_to_ready"]
            known[outcome.name] = {
                "pid": outcome.pid,
                "seconds_to_ready": entry["seconds_to_ready"],
                "ready_since": now,
                "restarts": outcome.restarts,
            }
            known[outcome.name].update({key: seen[key] for key in _LASTING if seen and key in seen})
        if outcome.is_ready and outcome.tokens_per_second is not None:
            known[outcome.name]["tokens_per_second"] = outcome.tokens_per_second
        revision = revisions.get(outcome.name)
        if outcome.is_ready and revision is not None and revision != known[outcome.name].get("refused_revision"):
            known[outcome.name]["ready_revision"] = revision
        result.append(entry)
    if write:
        _write(state_dir, known)
    return result


def note_seconds(state_dir: str, seconds: Mapping[str, tuple[int | None, float]]) -> None:
    """Note the seconds to readiness of servers that became ready while others were still being started, by name."""
    known = _read(state_dir)
    for name, (pid, took) in seconds.items():
        known.setdefault(name, {})["started"] = {"pid": pid, "seconds_to_ready": took}
    _write(state_dir, known)


def note_stops(state_dir: str, results: Mapping[str, Result]) -> None:
    """Note which servers' last stop was stuck, by name; a stop that was not clears the note."""
    known = _read(state_dir)
    for name, result in results.items():
        if result.stuck:
            known.setdefault(name, {})["stuck_stop"] = {"signal": result.signal, "seconds": result.seconds}
        else:
            known.get(name, {}).pop("stuck_stop", None)
    _write(state_dir, known)


def note_memory(state_dir: str, memory: Mapping[str, Mapping[str, Any]]) -> None:
    """Note the memory of servers that became ready, as estimated and as loaded, by name."""
    known = _read(state_dir)
    for name, found in memory.items():
        known.setdefault(name, {})["memory"] = dict(found)
    _write(state_dir, known)


def note_speeds(state_dir: str, speeds: Mapping[str, float]) -> None:
    """Note the tokens a second of servers that were probed, by name; not of those that no one saw become ready."""
    known = _read(state_dir)
    for name, speed in speeds.items():
        if "pid" in known.get(name, {}):
            known[name]["tokens_per_second"] = speed
    _write(state_dir, known)


def note_accepted_speeds(state_dir: str, speeds: Mapping[str, float]) -> None:
    """Note the tokens a second that later rollouts are compared with, by name."""
    known = _read(state_dir)
    for name, speed in speeds.items():
        known.setdefault(name, {})["accepted_speed"] = speed
    _write(state_dir, known)


def accepted_speeds(state_dir: str) -> dict[str, float]:
    """Return the tokens a second that a rollout's gate compares with, by name. Raises ObservedError."""
    return {name: seen["accepted_speed"] for name, seen in _read(state_dir).items() if "accepted_speed" in seen}


def note_started_configs(state_dir: str, pids: Mapping[str, int | None], digests: Mapping[str, str]) -> None:
    """Note the digest of the launch config that servers were started with, by name. pids are their new processes."""
    known = _read(state_dir)
    for name, pid in pids.items():
        if pid is not None and name in digests:
            known.setdefault(name, {})["started_config"] = {"pid": pid, "digest": digests[name]}
    _write(state_dir, known)


def started_configs(state_dir: str) -> dict[str, dict[str, Any]]:
    """Return process and digest of the launch config of each server's last start. Raises ObservedError."""
    return {name: seen["started_config"] for name, seen in _read(state_dir).items() if "started_config" in seen}


def ready_seconds(state_dir: str) -> dict[str, float]:
    """Return the seconds that each server took to become ready when this was last seen. Raises ObservedError."""
    known = _read(state_dir)
    return {name: seen["seconds_to_ready"] for name, seen in known.items() if seen.get("seconds_to_ready") is not None}


def for_status(state_dir: str) -> dict[str, dict[str, Any]]:
    """Return what was seen of each server that its status shows: pid, memory, speed, a stuck stop."""
    keys = ("pid", "memory", "tokens_per_second", "stuck_stop")
    return {name: {key: seen[key] for key in keys if key in seen} for name, seen in _read(state_dir).items()}


def refused_revisions(state_dir: str) -> dict[str, Any]:
    """Return the revision with which each server was ready but did not answer. Raises ObservedError."""
    known = _read(state_dir)
    return {name: seen["refused_revision"] for name, seen in known.items() if "refused_revision" in seen}


def record_verdicts(
    state_dir: str,
    revisions: Mapping[str, Any],
    *,
    failed: Sequence[str] = (),
    refused: Sequence[str] = (),
    answered: Sequence[str] = (),
) -> None:
    """Note which servers did not answer, which of these are themselves at fault (refused), and which answer again.

    Becoming ready clears failed; only an answer clears refused. revisions are the deployed ones, by server.
    """
    known = _read(state_dir)
    for name in failed:
        known.get(name, {}).pop("ready_revision", None)
    for name in refused:
        known.setdefault(name, {})["refused_revision"] = revisions.get(name)
    for name in answered:
        seen = known.get(name, {})
        if "refused_revision" in seen and seen["refused_revision"] == revisions.get(name):
            seen["ready_revision"] = seen.pop("refused_revision")
    _write(state_dir, known)


def migrate_observations(state_dir: str) -> File | None:
    """The file that replaces an older version's file; None if there is nothing to migrate. Raises ObservedError.

    If both exist, the new one is complete and the old one only remains to be removed.
    """
    if os.path.lexists(observed_path(state_dir)) or not os.path.lexists(old_path(state_dir)):
        return None
    return _file(state_dir, _read(state_dir))


def _file(state_dir: str, known: Mapping[str, Any]) -> File:
    boot = _boot()
    text = json.dumps(OBSERVED.stamp({**({"boot": boot} if boot else {}), "servers": dict(known)}), indent=2) + "\n"
    return File(observed_path(state_dir), text.encode(), MODE)


def _read(state_dir: str) -> Known:
    """The observations by server; empty if the file is missing or damaged, because they can be made again."""
    servers: Any = {}
    boot = None
    with contextlib.suppress(OSError, ValueError, RecursionError, DocumentError):
        try:
            with open_trusted(observed_path(state_dir)) as stream:
                found = OBSERVED.migrated(json.load(stream))
                servers, boot = found.get("servers"), found.get("boot")
        except NewerDocumentError as error:
            raise ObservedError(f"{observed_path(state_dir)}: {error}") from error
        except FileNotFoundError:
            with open_trusted(old_path(state_dir)) as stream:
                servers = migrated_version_1(json.load(stream))
    servers = servers if isinstance(servers, dict) else {}
    known = {name: seen for name, seen in servers.items() if _is_valid(name, seen)}
    if boot is None or boot == (_boot() or boot):
        return known
    return {name: {key: seen[key] for key in _LASTING_OVER_BOOTS if key in seen} for name, seen in known.items()}


def _boot() -> str | None:
    """This boot of the host; None where it is hidden from this user."""
    try:
        return boot_id()
    except OSError:
        return None


def _is_valid(name: Any, seen: Any) -> bool:
    try:
        check({name: seen}, Map(_SERVER, NAME), "it")
    except DocumentError:
        return False
    return True


def migrated_version_1(known: Any) -> Known:
    """Convert ready.json to the key "servers" of observed.json."""
    names = {"seconds": "seconds_to_ready", "revision": "ready_revision", "refused": "refused_revision"}

    def renamed(seen: Any) -> Any:
        if not isinstance(seen, dict):
            return seen
        return {names.get(key, key): renamed(value) for key, value in seen.items()}

    return {name: renamed(seen) for name, seen in known.items()} if isinstance(known, dict) else {}


def _write(state_dir: str, known: Mapping[str, Any]) -> None:
    """Write the file if its content changes."""
    if known == _read(state_dir):
        return
    file = _file(state_dir, known)
    # Only a convenience: a folder that cannot be written must not fail the task.
    with contextlib.suppress(OSError):
        write_atomic(file.path, file.content, file.mode)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old_path(state_dir))
