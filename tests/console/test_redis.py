# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consoles that share a Redis, and what they do while it is away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.console import RunningConsole
from support.running_redis import RunningRedis, needs_redis, running_redis

from .conftest import fake_console

pytestmark = needs_redis
PASSWORD = "s3cret-of-redis"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningRedis]:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis.password").write_text(f"{PASSWORD}\n")
    with running_redis(tmp_path / "redis", "--requirepass", PASSWORD, "--appendonly", "yes") as running:
        yield running


@pytest.fixture
def console(tmp_path: Path, server: RunningRedis, fake: Callable[..., None]) -> Iterator[RunningConsole]:
    options = ("--redis", server.url, "--redis-password-file", str(tmp_path / "redis.password"))
    with fake_console(tmp_path, *options) as running:
        yield running


@pytest.fixture
def other(tmp_path: Path, console: RunningConsole) -> Iterator[RunningConsole]:
    """A second console, with the same tokens and the same Redis."""
    arguments = (*console.arguments, "--tokens", str(console.data / "tokens.json"))
    second = RunningConsole(console.inventory, tmp_path / "other", arguments=arguments, environment=console.environment)
    second.read.headers.update(console.read.headers)
    second.operate.headers.update(console.operate.headers)
    second.start()
    yield second
    second.stop()
    for client in (second.anonymous, second.read, second.operate):
        client.close()


def live(console: RunningConsole) -> httpx.Response:
    return console.read.get("/api/v1/events", params={"after": 0, "follow": False})


def until(is_so: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_consoles_share_events_sessions_and_keys_of_requests(
    console: RunningConsole, other: RunningConsole, server: RunningRedis
) -> None:
    job = console.submit("status", key="k")["id"]
    console.wait(job)
    ci = {"run": "ci-1", "type": "line", "at": "2026-11-27T18:00:00.000Z", "seq": 1, "data": {"text": "hello"}}
    client = server.client(password=PASSWORD)
    for text in ("not JSON", json.dumps({**ci, "data": None}), json.dumps(ci)):
        client.xadd("magi:events", {"event": text})
    seen = other.read.get(
        "/api/v1/events", params={"after": 0, "follow": False}, headers={"accept": "application/x-ndjson"}
    )
    events = [json.loads(line) for line in seen.text.splitlines() if line]
    assert [(event["run"], event["seq"]) for event in events] == [*((job, seq) for seq in range(1, 6)), ("ci-1", 1)]
    assert other.submit("status", key="k")["id"] == job
    assert other.operate.get("/api/v1/jobs").json()["jobs"] == []
    # Consoles behind one address have one port; here each has its own, and its cookie's name with it.
    (cookie,) = console.sign_in(console.read).cookies.values()
    cookies = {f"magi-console-{other.port}": cookie}
    assert httpx.get(f"{other.url}/api/v1/session", cookies=cookies).json()["name"] == "test-read"
    assert {key.partition(b":")[0] for key in client.scan_iter()} == {b"magi"}


def test_events_of_another_console_come_live(console: RunningConsole, other: RunningConsole) -> None:
    lines: list[str] = []

    def read() -> None:
        headers = {"accept": "application/x-ndjson"}
        with other.read.stream("GET", "/api/v1/events", headers=headers) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if '"run_ended"' in line:
                    return

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: lines)
    job = console.submit("status")["id"]
    reader.join(20)
    assert job in lines[-1]


def test_run_ends_while_there_is_no_redis_and_its_events_come_later(
    console: RunningConsole, server: RunningRedis, fake: Callable[..., None], tmp_path: Path
) -> None:
    fake(events=5, wait=str(tmp_path / "go"))
    browser = console.sign_in(console.read)
    job = console.submit("rollout", profile="mine")["id"]
    until(lambda: len(console.events_so_far(job)) == 6)
    server.stop()
    away = until(lambda: (answer := live(console)).status_code == 503 and answer)
    assert away.headers["content-type"] == "application/problem+json"
    assert away.json()["detail"].startswith("There is no live view")
    assert console.read.get(f"/api/v1/jobs/{job}/events").status_code == 503
    assert browser.get("/api/v1/session").status_code == 503
    # What it knows by itself it still answers, and jobs are taken.
    assert console.read.get("/api/v1/hosts").status_code == 200
    assert console.job(job)["state"] == "running"
    assert console.operate.post("/api/v1/jobs", json={"verb": "status"}, headers={"Idempotency-Key": "k"}).is_error
    queued = console.submit("status")["id"]
    (tmp_path / "go").touch()
    assert console.wait(job)["rc"] == 0
    assert (console.data / "jobs" / job / "behind").exists()
    assert console.wait(queued)["rc"] == 0
    server.start()
    until(lambda: live(console).status_code == 200)
    assert [event["seq"] for event in console.events(job)] == list(range(1, 8))
    assert browser.get("/api/v1/session").status_code == 200
    assert console.submit("status", key="k")["id"] not in (job, queued)


def test_job_ends_while_the_memory_of_redis_is_used_up_and_its_events_come_later(
    console: RunningConsole, server: RunningRedis, fake: Callable[..., None]
) -> None:
    client = server.client(password=PASSWORD)
    client.config_set("maxmemory", "100kb")
    fake(events=5)
    job = console.submit("rollout", profile="mine")["id"]
    assert console.wait(job)["rc"] == 0
    # The hosts of the job that has ended are free for the next one.
    assert console.wait(console.submit("site")["id"])["rc"] == 0
    assert console.events_so_far(job) == []
    threading.Timer(1, client.config_set, ("maxmemory", "0")).start()
    # Its stream ends when they have come.
    assert [event["seq"] for event in console.events(job)] == list(range(1, 8))


def test_password_is_nowhere_below_the_data_folder(console: RunningConsole) -> None:
    console.wait(console.submit("status")["id"])
    assert [path for path in console.data.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()] == []
