# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server a request goes to with gateway_stickiness and X-Conversation-Id, with a real HAProxy and fakes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError
from ansible_collections.magi.llama.plugins.module_utils._gateway.sticky import check_stickiness
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, Running, running, server

pytestmark = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One."}]


@contextlib.contextmanager
def gateway(folder: Path, slots: int = 4, seconds: float = 0.0, **settings: Any) -> Iterator[tuple[Running, list[Any]]]:
    with contextlib.ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer(seconds=seconds)) for _ in range(3)]
        servers = tuple(server(fake.port, slots) for fake in fakes)
        yield stack.enter_context(running(folder, [Backend("m", "M", "Q4", "model", servers)], **settings)), fakes


def ports(found: Running, count: int = 6, **more: Any) -> set[int]:
    return {found.ask("m", **more).json()["port"] for _ in range(count)}


def test_requests_go_round_without_stickiness(tmp_path: Path) -> None:
    with gateway(tmp_path) as (found, _fakes):
        assert len(ports(found, user="ann")) == 3


MARKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "user": lambda number: {"user": f"user {number}"},
    "header:X-Session-Id": lambda number: {"headers": {"X-Session-Id": str(number)}},
    "conversation": lambda number: {"messages": [*CHAT[:1], {"role": "user", "content": f"Number {number}."}]},
}


@pytest.mark.parametrize(("stickiness", "mark"), MARKS.items(), ids=MARKS)
def test_requests_with_one_mark_go_to_one_server(
    stickiness: str, mark: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    with gateway(tmp_path, stickiness=stickiness) as (found, _fakes):
        chosen = [ports(found, 1, **mark(number)) for number in range(9)]
        assert len(set().union(*chosen)) > 1
        assert [ports(found, 2, **mark(number)) for number in range(9)] == chosen


def test_conversation_that_goes_on_stays(tmp_path: Path) -> None:
    first = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    later = [*first, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    with gateway(tmp_path, stickiness="conversation") as (found, _fakes):
        begun = ports(found, 1, messages=first)
        ports(found, 1, messages=CHAT)
        assert ports(found, 4, messages=later) == begun


def test_sticky_requests_yield_to_a_free_server(tmp_path: Path) -> None:
    with gateway(tmp_path, slots=1, seconds=1.0, stickiness="user") as (found, _fakes), ThreadPoolExecutor(4) as pool:
        begin = time.monotonic()
        answers = list(pool.map(lambda _: found.ask("m", user="ann"), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    # One has the slot and one waits for it; the others are served elsewhere.
    assert len({answer.json()["port"] for answer in answers}) >= 2
    assert time.monotonic() - begin < 3.5


def test_stickiness_outlives_reload_and_loss_of_server(tmp_path: Path) -> None:
    with gateway(tmp_path, stickiness="user") as (found, fakes):
        [port] = ports(found, user="ann")
        # A process hands its tables on once it has taken those of its predecessor, or found none.
        time.sleep(5.5)
        found.reload()
        time.sleep(1)
        found.wait_until({f"s_{fake.port}": "UP" for fake in fakes})
        assert ports(found, user="ann") == {port}
        gone = next(fake for fake in fakes if fake.port == port)
        gone.shutdown()
        gone.server_close()
        [other] = ports(found, user="ann")
        assert other != port


def test_conversation_with_id_stays_with_its_server_and_client(tmp_path: Path) -> None:
    clients = [Client(name, hashlib.sha256(key.encode()).hexdigest()) for name, key in KEYS.items()]
    with gateway(tmp_path, clients=clients) as (found, fakes):
        mark = {"X-Conversation-Id": "c/1 é?&".encode()}
        [port] = ports(found, key=KEYS["alice"], headers=mark)
        fake = next(fake for fake in fakes if fake.port == port)
        sent = {headers["x-conversation-id"] for _path, headers, _body in fake.seen}
        assert len(sent) == 1
        [digest] = sent
        assert len(digest) == 64
        with found.client(KEYS["alice"]) as client:
            again = client.get("/v1/stream", params={"conv_id": "c/1 é?&", "from": "7"})
            ended = client.delete("/v1/stream", params={"conv_id": "c/1 é?&", "from": "7&conv_id=x"})
            unknown = client.get("/v1/stream", params={"conv_id": "c2"})
            missing = client.get("/v1/stream")
            posted = client.post("/v1/stream", params={"conv_id": "c2"})
        assert (again.status_code, ended.status_code) == (200, 200)
        assert [path for path, _headers, _body in fake.seen[-2:]] == [
            f"/v1/stream?conv_id={digest}&from=7",
            f"/v1/stream?conv_id={digest}&from=7",
        ]
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "conversation_not_found")
        assert (missing.status_code, missing.json()["error"]["code"]) == (400, "missing_conversation")
        assert posted.status_code == 405
        # The same id of another client is another conversation.
        with found.client(KEYS["bob"]) as client:
            assert client.get("/v1/stream", params={"conv_id": "c/1 é?&"}).status_code == 404


@pytest.mark.parametrize("value", ["users", "header:", "header:a b", "header:x\nlua-load y", "X-Session-Id"])
def test_unknown_stickiness_is_refused(value: str) -> None:
    with pytest.raises(GatewayError, match="gateway_stickiness must be user, conversation, header:NAME"):
        check_stickiness(value)
