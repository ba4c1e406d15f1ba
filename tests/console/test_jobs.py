# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs: queued, carried out in turn, followed, cancelled, and found again after the console was killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from support.console import RunningConsole

Fake = Callable[..., None]


def test_job_runs_and_its_events_are_there_in_order(console: RunningConsole, fake: Fake) -> None:
    fake(events=20)
    job = console.submit("site", profile="mine", limit=["first"], check=True)
    assert (job["verb"], job["hosts"], job["by"], job["check"]) == ("site", ["node1"], "test-operate", True)
    events = console.events(job["id"])
    assert [event["seq"] for event in events] == list(range(1, 23))
    assert [event["sequence"] for event in events] == sorted({event["sequence"] for event in events})
    ended = console.wait(job["id"])
    assert (ended["state"], ended["rc"]) == ("finished", 0)
    printed = json.loads(console.read.get(f"/api/v1/jobs/{job['id']}/output").text)
    assert printed["argv"][4:] == ["--limit", "node1", "--check", str(Path(__file__).parents[2] / "playbooks/site.yml")]
    assert {"MAGI_EVENTS", "MAGI_RUN_ID", "PATH"} <= set(printed["environment"])
    assert "SECRET_OF_THE_CONSOLE" not in printed["environment"]


def test_failed_run_has_its_exit_status(console: RunningConsole, fake: Fake) -> None:
    fake(rc=2)
    ended = console.wait(console.submit("verify")["id"])
    assert (ended["state"], ended["rc"]) == ("failed", 2)


def test_jobs_of_one_host_run_one_after_another_and_others_side_by_side(
    console: RunningConsole, fake: Fake, tmp_path: Path
) -> None:
    fake(wait=str(tmp_path / "go"))
    first = console.submit("status", limit=["node1"])["id"]
    second = console.submit("status", limit=["node1", "node2"])
    other = console.submit("status", limit=["node3"])["id"]
    third = console.submit("status", limit=["node2"])
    assert second["waits_for"] == {"host": "node1", "job": first}
    # It does not overtake the one that waits for node2 and node1.
    assert third["waits_for"] == {"host": "node2", "job": second["id"]}
    for running in (first, other):
        console.wait(running, "running")
    assert console.job(second["id"])["state"] == "queued"
    (tmp_path / "go").touch()
    ended = {name: console.wait(name) for name in (first, second["id"], other, third["id"])}
    assert {job["state"] for job in ended.values()} == {"finished"}
    assert ended[first]["ended_at"] <= ended[second["id"]]["started_at"]
    assert ended[second["id"]]["ended_at"] <= ended[third["id"]]["started_at"]
    assert ended[second["id"]]["waits_for"] is None


def test_running_job_says_for_whose_lock_it_waits_and_since_when(
    console: RunningConsole, fake: Fake, tmp_path: Path
) -> None:
    since = "2026-11-27T18:00:00.000Z"

    def waits(host: str, has_lock: bool) -> dict[str, object]:
        data = {"holder": "ann on ci2, rollout.yml", "since": since, "seconds": 10, "has_lock": has_lock}
        return {"host": host, "type": "lock_waited", "data": data}

    failed = {"host": "node3", "type": "task_failed", "data": {"task": "Take the lock", "msg": "held", "fix": None}}
    sent = [waits("node1", False), waits("node1", False), waits("node2", False), waits("node2", True)]
    fake(wait=str(tmp_path / "go"), send=[*sent, waits("node3", False), failed])
    job = console.submit("status")["id"]
    while len(console.events_so_far(job)) < 8:
        time.sleep(0.01)
    answered = console.job(job)
    assert answered["waits_for_locks"] == [{"host": "node1", "holder": "ann on ci2, rollout.yml", "since": since}]
    (tmp_path / "go").touch()
    assert console.wait(job)["waits_for_locks"] == []


def test_cancelled_run_ends_and_next_one_of_the_host_starts(
    console: RunningConsole, fake: Fake, tmp_path: Path
) -> None:
    fake(wait=str(tmp_path / "never"))
    running = console.submit("site")["id"]
    while not console.events_so_far(running):
        time.sleep(0.01)
    fake()
    queued = console.submit("status")["id"]
    unwanted = console.submit("status")["id"]
    assert console.operate.post(f"/api/v1/jobs/{unwanted}/cancel").json()["job"]["state"] == "cancelled"
    assert console.operate.post(f"/api/v1/jobs/{running}/cancel").status_code == 202
    ended = console.wait(running)
    assert (ended["state"], ended["rc"]) == ("cancelled", 99)
    following = console.wait(queued)
    assert following["state"] == "finished"
    assert console.job(unwanted)["started_at"] is None
    # One that has ended stays as it is.
    assert console.operate.post(f"/api/v1/jobs/{running}/cancel").json()["job"]["state"] == "cancelled"


def test_killed_console_loses_neither_events_nor_result(console: RunningConsole, fake: Fake, tmp_path: Path) -> None:
    fake(events=300, seconds=0.01, wait=str(tmp_path / "go"))
    job = console.submit("site")["id"]
    queued = console.submit("status")["id"]
    while len(console.events_so_far(job)) < 20:
        time.sleep(0.02)
    console.stop(signal.SIGKILL)
    console.start()
    assert [console.job(name)["state"] for name in (job, queued)] == ["running", "queued"]
    (tmp_path / "go").touch()
    ended = console.wait(job)
    assert (ended["state"], ended["rc"]) == ("finished", 0)
    assert [event["seq"] for event in console.events(job)] == list(range(1, 303))
    assert console.wait(queued)["state"] == "finished"


def test_run_that_ended_while_the_console_was_away_is_complete(console: RunningConsole, fake: Fake) -> None:
    fake(events=50, seconds=0.01, rc=2)
    job = console.submit("site")["id"]
    while not console.events_so_far(job):
        time.sleep(0.01)
    console.stop(signal.SIGKILL)
    while not (console.data / "jobs" / job / "rc").exists():
        time.sleep(0.02)
    console.start()
    ended = console.wait(job)
    assert (ended["state"], ended["rc"]) == ("failed", 2)
    assert [event["seq"] for event in console.events(job)] == list(range(1, 53))


def test_killed_process_of_a_job_is_lost_and_says_so_in_its_events(
    console: RunningConsole, fake: Fake, tmp_path: Path
) -> None:
    fake(wait=str(tmp_path / "never"))
    job = console.submit("site", limit=["node2"])["id"]
    while not console.events_so_far(job):
        time.sleep(0.01)
    runner = json.loads((console.data / "jobs" / job / "pid").read_text())["pid"]
    os.kill(runner, signal.SIGKILL)
    # Its command still runs, so the host is not free.
    time.sleep(0.3)
    assert console.job(job)["state"] == "running"
    console.operate.post(f"/api/v1/jobs/{job}/cancel")
    assert console.wait(job)["state"] == "cancelled"
    last = console.events(job)[-1]
    assert (last["type"], last["data"]["rc"], last["data"]["hosts"]["node2"]["failed"]) == ("run_ended", 137, 1)


def test_job_with_damaged_files_does_not_hold_up_others(console: RunningConsole, fake: Fake, tmp_path: Path) -> None:
    fake(wait=str(tmp_path / "go"))
    damaged = console.submit("status", limit=["node1"])["id"]
    while not console.events_so_far(damaged):
        time.sleep(0.01)
    process = console.data / "jobs" / damaged / "pid"
    kept = process.read_text()
    process.write_text("damaged")
    (tmp_path / "go").touch()
    # Neither now nor after a restart.
    console.stop(signal.SIGKILL)
    console.start()
    assert console.wait(console.submit("status", limit=["node2"])["id"])["state"] == "finished"
    process.write_text(kept)
    assert console.wait(damaged)["state"] == "finished"


def test_same_idempotency_key_is_the_same_job(console: RunningConsole) -> None:
    first = console.submit("status", key="monday", limit=["node1"])
    assert console.submit("status", key="monday", limit=["node1"])["id"] == first["id"]
    assert console.submit("status", key="tuesday", limit=["node1"])["id"] != first["id"]
    body = {"verb": "status", "limit": ["node2"]}
    refused = console.operate.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "monday"})
    assert (refused.status_code, "new key" in refused.json()["fix"]) == (409, True)
    # Of one token, not of all.
    assert len(console.read.get("/api/v1/jobs").json()["jobs"]) == 2


def test_jobs_are_listed_by_state_newest_first(console: RunningConsole, fake: Fake, tmp_path: Path) -> None:
    done = console.submit("status", limit=["node1"])["id"]
    console.wait(done)
    fake(wait=str(tmp_path / "go"))
    running = console.submit("status", limit=["node1"])["id"]
    console.wait(running, "running")
    assert [job["id"] for job in console.read.get("/api/v1/jobs").json()["jobs"]] == [running, done]
    only = console.read.get("/api/v1/jobs", params={"state": "finished"}).json()["jobs"]
    assert [job["id"] for job in only] == [done]
    (tmp_path / "go").touch()
    console.wait(running)


def test_unknown_job_names_those_that_there_are(console: RunningConsole) -> None:
    job = console.submit("status")["id"]
    answer = console.read.get(f"/api/v1/jobs/{job}x")
    assert (answer.status_code, answer.json()["nearest"]) == (404, [job])
