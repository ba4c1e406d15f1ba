# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway does with the slots of real servers: clients that leave, and answers that outlive their client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.llama import Llama, llama
from support.running_gateway import Running, running, server

# Seconds of work for the tiny model.
LONG = {"model": "m", "max_tokens": 15000, "stream": True, "ignore_eos": True}
CHAT = {**LONG, "messages": [{"role": "user", "content": "a"}]}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Running, list[Llama]]]:
    with llama(tmp_path) as first, llama(tmp_path) as second:
        servers = tuple(server(one.port) for one in (first, second))
        (tmp_path / "g").mkdir()
        with running(tmp_path / "g", [Backend("m", "M", "Q4", "model", servers)]) as gateway:
            yield gateway, [first, second]


def test_client_that_leaves_frees_its_slot(served: tuple[Running, list[Llama]]) -> None:
    gateway, servers = served
    with gateway.client() as client, client.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert sum(one.busy() for one in servers) == 1
    left = time.monotonic()
    while sum(one.busy() for one in servers):
        assert time.monotonic() < left + 1, "the slot is still taken a second later"


def test_conversation_goes_on_without_its_client_and_is_replayed(served: tuple[Running, list[Llama]]) -> None:
    gateway, servers = served
    mark = {"X-Conversation-Id": "mine"}
    with gateway.client() as client:
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 4000}, headers=mark) as answer:
            lines = answer.iter_lines()
            begun = [next(lines) for _ in range(3)]
        assert sum(one.busy() for one in servers) == 1
        # Every time from the server that has it, although there are two.
        for _ in range(4):
            again = client.get("/v1/stream", params={"conv_id": "mine"}).text.splitlines()
            assert again[:3] == begun
            assert "data: [DONE]" in again
        assert client.delete("/v1/stream", params={"conv_id": "mine"}).status_code == 204
