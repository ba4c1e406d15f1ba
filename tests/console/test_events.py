# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events as server-sent events and as JSON lines: resumed by id, with the changes of jobs, until the end of a job."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from support.console import RunningConsole


def messages(text: str) -> list[dict[str, str]]:
    """The fields of each server-sent event."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_stream_of_a_job_ends_with_it(console: RunningConsole) -> None:
    job = console.submit("status")["id"]
    answer = console.read.get(f"/api/v1/jobs/{job}/events", headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = messages(answer.text)
    runs = [json.loads(one["data"]) for one in found if "event" not in one]
    assert [event["seq"] for event in runs] == [1, 2, 3, 4, 5]
    assert found[-1]["event"] == "end"
    states = [json.loads(one["data"])["state"] for one in found if one.get("event") == "job"]
    assert states[-1] == "finished"


def test_last_event_id_resumes_after_that_event(console: RunningConsole) -> None:
    job = console.submit("status")["id"]
    everything = console.events(job)
    rest = console.events(job, **{"Last-Event-ID": str(everything[2]["sequence"])})
    assert rest == everything[3:]
    wrong = console.read.get(f"/api/v1/jobs/{job}/events", headers={"Last-Event-ID": "x"})
    assert wrong.status_code == 400


def test_stream_of_all_runs_begins_now_and_has_changes_of_jobs(
    console: RunningConsole, fake: Callable[..., None], tmp_path: Path
) -> None:
    console.wait(console.submit("status", limit=["node1"])["id"])
    fake(wait=str(tmp_path / "go"))
    seen: list[str] = []
    connected = threading.Event()

    def listen() -> None:
        with console.anonymous.stream("GET", "/api/v1/events", headers=dict(console.read.headers)) as stream:
            for line in stream.iter_lines():
                connected.set()
                seen.append(line)
                if '"state":"finished"' in line:
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    connected.wait()
    job = console.submit("status", limit=["node2"])["id"]
    (tmp_path / "go").touch()
    listener.join(30)
    assert not listener.is_alive()
    events = [json.loads(line.removeprefix("data: ")) for line in seen if line.startswith("data: ")]
    assert {event["run"] for event in events if "run" in event} == {job}
    assert [event["type"] for event in events if "run" in event] == ["run_started", *["line"] * 3, "run_ended"]
    assert [event["state"] for event in events if "run" not in event][-1] == "finished"


def test_all_events_are_listed_from_a_place_without_following(console: RunningConsole) -> None:
    jobs = [console.submit("status", limit=[host])["id"] for host in ("node1", "node2")]
    for job in jobs:
        console.wait(job)
    headers = {"accept": "application/x-ndjson"}
    text = console.read.get("/api/v1/events", params={"after": 0, "follow": False}, headers=headers).text
    events = [json.loads(line) for line in text.splitlines() if line]
    assert len(events) == 10 and {event["run"] for event in events} == set(jobs)
