# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that leave the gateway and come back while requests are under way, with real servers and a real HAProxy."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.state import SLACK_SECONDS
from support.gateway import Q2, Q3, Q4, SERVER_KEY, Gateway

FIRST, SECOND = Q4, f"{Q4}-2"
KEYS = {"keys": json.dumps({"bed": [SERVER_KEY]})}


@pytest.fixture
def drained(gateway: Gateway) -> Iterator[Gateway]:
    """A gateway whose servers are all in use again afterwards."""
    yield gateway
    gateway.update()
    gateway.wait_up(4)


def busy(gateway: Gateway) -> str:
    """The name of the server of Q4 that has a request."""
    found = [name for name in (FIRST, SECOND) if int(gateway.admin.statistics()[gateway.server(name)]["scur"])]
    assert len(found) == 1, found
    return found[0]


def status(gateway: Gateway, name: str) -> str:
    return gateway.admin.statistics()[gateway.server(name)]["status"]


def sessions(gateway: Gateway, name: str) -> int:
    """How many requests a server has had since the worker began."""
    return int(gateway.admin.statistics()[gateway.server(name)]["stot"])


def test_drained_server_ends_its_stream_and_gets_no_request(drained: Gateway) -> None:
    worker = drained.admin.pid()
    with drained.stream(Q4) as stream:
        name = busy(drained)
        update = drained.update([name])
        assert update["how"] == "servers"
        assert sorted([*update["serving"], drained.server(name)[1]]) == sorted(key[1] for key in drained.checks())
        before = sessions(drained, name)
        assert [drained.complete(Q4).status_code for _ in range(8)] == [200] * 8
        assert sessions(drained, name) == before
        assert busy(drained) == name
        assert stream.ends_whole()
    back = drained.update()
    assert (back["how"], back["not_ready"], status(drained, name)) == ("servers", [], "UP")
    assert drained.admin.pid() == worker
    assert drained.update()["changed"] is False


def test_drained_server_is_waited_for_until_its_stream_is_over(drained: Gateway) -> None:
    def wait(seconds: float) -> dict[str, Any]:
        options = {"state_dir": str(drained.bed.state), "servers": [name], "timeout": seconds}
        [found] = drained.bed.module("wait_until_idle", **options)["servers"]
        return found

    with drained.stream(Q4) as stream, ThreadPoolExecutor(1) as pool:
        name = busy(drained)
        drained.update([name])
        late = wait(0.5)
        assert (late["idle"], late["requests"]) == (False, 1)
        waiting = pool.submit(wait, 60)
        assert stream.ends_whole()
        found = waiting.result()
    assert (found["idle"], found["requests"], found["detail"]) == (True, 0, None)


def test_drained_server_stays_so_over_reload_and_comes_back(drained: Gateway) -> None:
    drained.update([SECOND])
    drained.set(gateway_max_queue=58)
    # The run says nothing of draining: that it returns is a part of this reload. The run takes no lock, so it would
    # leave the host to a run that has changed it just now.
    time.sleep(SLACK_SECONDS)
    drained.bed.run("gateway").expect("reloaded")
    assert status(drained, SECOND) == "UP"
    drained.update([SECOND])
    with drained.stream(Q4) as stream:
        (drained.state / "applied").unlink()
        assert drained.update([SECOND])["how"] == "reload"
        assert status(drained, SECOND) == "MAINT"
        assert [drained.complete(Q4).status_code for _ in range(4)] == [200] * 4
        assert stream.ends_whole()
    drained.set(gateway_max_queue=64)
    assert drained.update()["not_ready"] == []
    assert status(drained, SECOND) == "UP"


def test_ready_servers_are_read_from_running_gateway(drained: Gateway) -> None:
    def ready() -> dict[str, dict[str, int]]:
        found = drained.state_module({"state": "read"})
        assert (found["changed"], found["exists"]) == (False, True)
        return found["ready"]

    assert ready() == {Q2: {"bed": 1}, Q3: {"bed": 1}, Q4: {"bed": 2}}
    drained.update([SECOND, Q3])
    assert ready() == {Q2: {"bed": 1}, Q4: {"bed": 1}}


def test_model_whose_servers_all_drain_is_away_and_known(drained: Gateway) -> None:
    with drained.stream(Q3) as stream:
        assert drained.update([Q3], {Q3: 45})["how"] == "servers"
        away = drained.complete(Q3)
        assert (away.status_code, away.json()["error"]["code"]) == (503, "model_not_ready")
        assert away.headers["retry-after"] == "45"
        with drained.client() as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [Q2, Q4]
        assert stream.ends_whole()
    drained.update([Q3])
    assert drained.complete(Q3).headers["retry-after"] == "2"


def test_server_that_does_not_answer_is_named_and_gets_no_request(drained: Gateway) -> None:
    drained.update([SECOND])
    pid = drained.bed.pids()[SECOND]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert drained.update(seconds=1)["not_ready"] == [drained.server(SECOND)[1]]
        assert [drained.complete(Q4).status_code for _ in range(6)] == [200] * 6
    finally:
        os.kill(pid, signal.SIGCONT)
    drained.wait_up(4)
    assert status(drained, SECOND) == "UP"


def test_removed_server_ends_its_stream(drained: Gateway) -> None:
    with drained.stream(Q4) as stream:
        name = busy(drained)
        others = [server for server in drained.bed.status() if server != name]
        entry = json.loads((drained.state / "fleet.json").read_text())["hosts"]["bed"]
        entry["servers"] = [server for server in entry["servers"] if server["name"] in others]
        removed = drained.state_module({"state": "updated"}, hosts={"bed": entry}, inventory=["bed"], **KEYS)
        assert removed["how"] == "servers"
        assert drained.complete(Q4).status_code == 200
        assert stream.ends_whole()
    assert drained.update()["not_ready"] == []
