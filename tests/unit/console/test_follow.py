# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's file of events is brought into the store: each event once, whole lines only."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from magi_llama_console.jobs.follow import follow, follow_to_end, missing_end, reported_rc
from magi_llama_console.store.base import Job
from magi_llama_console.store.sqlite import SqliteStore

JOB = Job(id="run", verb="site", variables={}, hosts=("node1", "node2"), by="", created_at="")


def line(seq: int, kind: str = "line", run: str = "run") -> bytes:
    data = {"rc": 2} if kind == "run_ended" else {}
    return json.dumps({"run": run, "seq": seq, "type": kind, "check": False, "data": data}).encode() + b"\n"


def numbers(store: SqliteStore) -> list[int]:
    return [event.event["seq"] for event in asyncio.run(store.events(job="run"))]


def test_each_event_is_kept_once_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1) + line(2) + line(3)[:10])
    for _ in range(2):
        store = SqliteStore(tmp_path / "console.db")
        asyncio.run(follow_to_end(store, "run", path))
        assert numbers(store) == [1, 2]
        asyncio.run(store.close())
    path.write_bytes(line(1) + line(2) + line(3))
    store = SqliteStore(tmp_path / "console.db")
    asyncio.run(follow_to_end(store, "run", path))
    assert numbers(store) == [1, 2, 3]
    asyncio.run(store.close())


def test_lines_that_are_not_events_of_the_run_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"nonsense\n[1]\n" + line(1, run="other") + b"\xff\xfe\n" + line(2))
    store = SqliteStore(tmp_path / "console.db")
    asyncio.run(follow_to_end(store, "run", path))
    assert numbers(store) == [2]
    asyncio.run(store.close())


def test_line_that_is_not_unicode_does_not_stop_those_after_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    escaped = line(1).replace(b'"line"', b'"line", "text": "a\\ud800\\ud83d\\ude00"')
    raw = line(2).replace(b'"line"', b'"line", "text": "a\xed\xa0\x80"')
    path.write_bytes(escaped + raw + b"[" * 100_000 + b"\n" + line(3))
    store = SqliteStore(tmp_path / "console.db")
    asyncio.run(follow_to_end(store, "run", path))
    assert numbers(store) == [1, 2, 3]
    texts = [event.event.get("text") for event in asyncio.run(store.events(job="run"))]
    assert texts == ["a?\U0001f600", "a\ufffd\ufffd\ufffd", None]
    asyncio.run(store.close())


def test_line_longer_than_a_chunk_is_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = {"run": "run", "seq": 1, "type": "plan", "data": {"text": "x" * (3 << 19)}}
    path.write_bytes(json.dumps(event).encode() + b"\n" + line(2))
    store = SqliteStore(tmp_path / "console.db")
    asyncio.run(follow_to_end(store, "run", path))
    assert numbers(store) == [1, 2]
    asyncio.run(store.close())


def test_line_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1) + b"x" * (3 << 21) + b"\n" + line(2))
    store = SqliteStore(tmp_path / "console.db")
    asyncio.run(follow_to_end(store, "run", path))
    assert numbers(store) == [1, 2]
    asyncio.run(store.close())


def test_missing_file_is_nothing_yet(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "console.db")
    assert asyncio.run(follow(store, "run", tmp_path / "none")) == 0
    assert missing_end(JOB, tmp_path / "none", 137) is None
    asyncio.run(store.close())


def test_run_without_end_gets_one_in_which_its_hosts_have_failed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1) + line(2)[:5])
    event = missing_end(JOB, path, 137)
    assert event and (event["seq"], event["type"], event["data"]["rc"]) == (2, "run_ended", 137)
    assert [one["failed"] for one in event["data"]["hosts"].values()] == [1, 1]
    assert reported_rc("run", path) is None
    path.write_bytes(line(1) + line(2, "run_ended"))
    assert missing_end(JOB, path, 137) is None
    assert reported_rc("run", path) == 2
    path.write_bytes(b'{"run": "run", "type": "run_ended"}\n')
    assert reported_rc("run", path) is None
    path.write_bytes(b'{"run": "run", "type": "line", "seq": "x"}\n')
    event = missing_end(JOB, path, 137)
    assert event and event["seq"] == 1
