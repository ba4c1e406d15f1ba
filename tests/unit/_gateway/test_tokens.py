# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of tokens by client, and metrics by client, with a real HAProxy before fakes."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, Running, running, server

pytestmark = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")


def client(name: str, **limits: object) -> Client:
    return Client(name, hashlib.sha256(f"key-of-{name}".encode()).hexdigest(), **limits)  # type: ignore[arg-type]


def codes(gateway: Running, name: str, count: int) -> list[int]:
    return [gateway.ask("m", key=f"key-of-{name}").status_code for _ in range(count)]


def metrics(gateway: Running) -> dict[str, float]:
    with gateway.client() as http:
        text = http.get(f"{gateway.metrics}/metrics/clients").text
    return {name: float(value) for name, value in re.findall(r"^magi_client_(\S+) (\S+)$", text, re.M)}


def wait_for_minute(seconds: float = 15) -> None:
    """Where this minute is nearly over, wait for the next one."""
    left = 60 - time.time() % 60
    if left < seconds:
        # HAProxy's clock is a little behind.
        time.sleep(left + 1)


def test_client_with_used_up_tokens_is_refused_until_next_minute(tmp_path: Path) -> None:
    clients = [client("ann", tokens_per_minute=25), client("ben")]
    with FakeServer() as fake:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        with running(tmp_path, [backend], clients) as gateway:
            wait_for_minute()
            # Each answer says that it is 10 tokens.
            assert codes(gateway, "ann", 4) == [200, 200, 200, 429]
            refused = gateway.ask("m", key="key-of-ann")
            assert refused.json()["error"] == {
                "message": "This API key has used up its tokens of this minute.",
                "type": "rate_limit_error",
                "param": None,
                "code": "token_limit_exceeded",
            }
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert codes(gateway, "ben", 4) == [200] * 4
            found = metrics(gateway)
            assert found['tokens_total{client="ann"}'] == 30
            assert found['tokens_total{client="ben"}'] == 40
            assert found['requests_total{client="ann"}'] == 5
            assert found['limited_requests_total{client="ann"}'] == 2
            assert found['first_byte_seconds_count{client="ann"}'] == 3
            assert 0 <= found['first_byte_seconds_sum{client="ben"}'] < 2


def test_quota_outlives_reload_and_restart(tmp_path: Path) -> None:
    clients = [client("ann", quota_tokens=25, quota_period="day"), client("ben", quota_tokens=15)]
    with FakeServer() as fake:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        (tmp_path / "a").mkdir()
        with running(tmp_path / "a", [backend], clients) as gateway:
            assert codes(gateway, "ann", 2) == [200, 200]
            assert codes(gateway, "ben", 3) == [200, 200, 429]
            refused = gateway.ask("m", key="key-of-ben")
            assert refused.json()["error"]["message"] == "This API key has used up its tokens of this month."
            assert 0 < int(refused.headers["retry-after"]) <= 31 * 86400
            time.sleep(2.5)
            gateway.reload()
            gateway.wait_until({f"s_{fake.port}": "UP"})
            assert codes(gateway, "ben", 1) == [429]
            assert codes(gateway, "ann", 2) == [200, 429]
            time.sleep(2.5)
            journal = (tmp_path / "a" / "tokens.journal").read_text()
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "tokens.journal").write_text(journal)
        with running(tmp_path / "b", [backend], clients) as gateway:
            assert codes(gateway, "ann", 1) == [429]
            assert codes(gateway, "ben", 1) == [429]


def test_nothing_counts_tokens_where_no_client_has_a_limit(tmp_path: Path) -> None:
    with FakeServer() as fake:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        with running(tmp_path, [backend], [client("ann")]) as gateway:
            assert codes(gateway, "ann", 2) == [200, 200]
            assert not any(name.startswith("tokens_total") for name in metrics(gateway))
            assert "magi_tokens" not in (gateway.config / "haproxy.cfg").read_text()


def test_limits_change_without_reload(tmp_path: Path) -> None:
    with FakeServer() as fake:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        limits = [client("ann", tokens_per_minute=15, quota_tokens=1000), client("ben", tokens_per_minute=1000)]
        with running(tmp_path, [backend], limits) as gateway:
            wait_for_minute()
            assert codes(gateway, "ann", 3) == [200, 200, 429]
            # As a run does it.
            gateway.admin.replace_map(str(gateway.config / "tokens.map"), {"ann": "1000", "ben": "10"})
            assert codes(gateway, "ann", 1) == [200]
            assert codes(gateway, "ben", 2) == [200, 429]
            gateway.admin.replace_map(str(gateway.config / "quotas.map"), {"ann": "month 30"})
            assert codes(gateway, "ann", 1) == [429]
            gateway.admin.replace_map(str(gateway.config / "patience.map"), {f"m/s_{fake.port}": "9"})
