# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that hangs while its health is good: taken out, its requests ended, and back when it answers."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import watch
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, running, server

needs_haproxy = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")


def outcome(asked: Future[httpx.Response]) -> int:
    """The status of the answer; 599 where the connection ended without one."""
    try:
        return asked.result().status_code
    except httpx.HTTPError:
        return 599


@needs_haproxy
@pytest.mark.parametrize("has_slots", [True, False], ids=["slots", "no_slots"])
def test_server_that_hangs_with_good_health_is_out_within_ten_seconds(tmp_path: Path, has_slots: bool) -> None:
    with FakeServer() as stuck, FakeServer() as other, ThreadPoolExecutor(4) as pool:
        backend = Backend("m", "M", "Q4", "model", (server(stuck.port), server(other.port)), key="k")
        with running(tmp_path, [backend]) as gateway:
            stuck.has_slots = other.has_slots = has_slots
            stuck.hangs = True
            begin = time.monotonic()
            asked = [pool.submit(gateway.ask, "m") for _ in range(2)]
            gateway.wait_until({f"s_{stuck.port}": "DOWN", f"s_{other.port}": "UP"})
            assert time.monotonic() - begin < 10
            # Its own check of /v1/models is still answered.
            assert {gateway.ask("m").json()["port"] for _ in range(4)} == {other.port}
            served, ended = sorted(map(outcome, asked))
            assert served == 200
            # HAProxy 3 ends the connection without an answer.
            assert ended in (502, 599)
            stuck.hangs = False
            stuck.released.set()
            gateway.wait_until({f"s_{stuck.port}": "UP"})
            assert {gateway.ask("m").json()["port"] for _ in range(4)} == {stuck.port, other.port}


@needs_haproxy
def test_server_that_is_only_slow_stays(tmp_path: Path) -> None:
    """Answers of any length, and batches of any length below the server's patience, are no hang."""
    with FakeServer(seconds=6.0) as slow, FakeServer("n") as busy, ThreadPoolExecutor(2) as pool:
        backends = [
            Backend("m", "M", "Q4", "model", (server(slow.port),)),
            Backend("n", "N", "Q4", "model", (server(busy.port),)),
        ]
        with running(tmp_path, backends, models={"n": {"hang_timeout": 30}}) as gateway:
            busy.hangs = True
            asked = [pool.submit(gateway.ask, model) for model in "mn"]
            end = time.monotonic() + 7
            while time.monotonic() < end:
                assert gateway.states()[f"s_{slow.port}"] == gateway.states()[f"s_{busy.port}"] == "UP"
                time.sleep(0.2)
            busy.released.set()
            assert [one.result().status_code for one in asked] == [200, 200]


def entry(*words: str, **memory: int) -> dict[str, Any]:
    return {"argv": ["llama-server", *words], "memory": memory}


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        # 5 GB on a GPU, on 16 threads, and on 16 threads in smaller batches.
        (entry("--threads", "16", weights_bytes=5 * 10**9, vram_bytes=6 * 10**9), 4),
        (entry("--threads", "16", weights_bytes=5 * 10**9, vram_bytes=0), 132),
        (entry("--threads", "16", "--batch-size", "256", weights_bytes=5 * 10**9, vram_bytes=0), 20),
        (entry("--threads", "2", weights_bytes=10**6, vram_bytes=0), 4),
        (entry("--threads", "1", weights_bytes=10**12, vram_bytes=0), watch.MAX_PATIENCE),
        (entry("--threads", "x"), 4),
    ],
)
def test_patience_is_time_of_a_batch(found: dict[str, Any], seconds: int) -> None:
    assert watch.patience_of(found) == seconds


def test_server_on_demand_may_have_to_start_first() -> None:
    server = {"argv": ["llama-server"], "memory": {}, "max_startup_time": 120}
    assert watch.patience_of({**server, "on_demand": {"port": 18080}}) == watch.patience_of(server) + 120
