# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings the events in a job's file into the store: each once, over restarts of the console too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..store.base import Job, Store, now

CHUNK_BYTES = 1 << 20
# A longer line is not an event of ours.
TAIL_BYTES = 1 << 22


async def follow(store: Store, job: str, path: Path) -> int:
    """Read what is new in the file, up to its last complete line; how many bytes that was.

    The events and the place in the file are kept in one transaction, so a console that is killed in between reads
    them again, and one that is killed after it does not.
    """
    offset = await store.offset(job)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            chunk = file.read(CHUNK_BYTES)
            if b"\n" not in chunk and len(chunk) == CHUNK_BYTES:
                chunk += file.readline(TAIL_BYTES)
    except FileNotFoundError:
        return 0
    complete = chunk[: chunk.rfind(b"\n") + 1]
    if len(chunk) > TAIL_BYTES:
        # Not an event: its beginning is left out here, its end in the next call.
        complete = complete or chunk
    if complete:
        await store.add_events(job, parse(complete, job), offset + len(complete))
    return len(complete)


async def follow_to_end(store: Store, job: str, path: Path) -> None:
    """The same until there is nothing new. What follows the last line break was cut off with its writer."""
    while await follow(store, job, path):
        pass


def parse(lines: bytes, run: str) -> list[dict[str, Any]]:
    """The events of this run in these lines; others are left out."""
    found = []
    for line in lines.splitlines():
        try:
            event = _loaded(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("run") == run and isinstance(event.get("type"), str):
            found.append(event)
    return found


def _loaded(line: bytes) -> Any:
    """The value of a line. What is not Unicode is replaced: neither the store nor a stream can keep it."""
    text = line.decode("utf-8", "replace")
    value = json.loads(text)
    # Only an escape can make half of a pair by now.
    if "\\ud" in text.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def missing_end(job: Job, path: Path, rc: int) -> Mapping[str, Any] | None:
    """The event run_ended of a run that could not send it, as it was killed; None if the file has it, or nothing.

    All of its hosts count as failed: what it has planned for them is not what is deployed.
    """
    last = _last_event(job.id, path)
    if last is None or last["type"] == "run_ended":
        return None
    kept: dict[str, Any] = {
        name: last[name] for name in ("schema_version", "collection_version", "check") if name in last
    }
    failed = {"ok": 0, "changed": 0, "failed": 1, "unreachable": 0}
    return {
        **kept,
        "at": job.ended_at or now(),
        "run": job.id,
        "seq": seq + 1 if isinstance(seq := last.get("seq"), int) else 1,
        "type": "run_ended",
        "data": {"rc": rc, "hosts": dict.fromkeys(job.hosts, failed)},
    }


def reported_rc(run: str, path: Path) -> int | None:
    """The exit status that the run itself has reported as its last event."""
    last = _last_event(run, path)
    data = last.get("data") if last and last["type"] == "run_ended" else None
    rc = data.get("rc") if isinstance(data, dict) else None
    return rc if isinstance(rc, int) else None


def _last_event(run: str, path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            events = parse(file.read(), run)
    except FileNotFoundError:
        return None
    return events[-1] if events else None
