# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway counts the tokens that a real server says of its answers, in each of their forms."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.llama import Llama, llama
from support.running_gateway import Running, running, server

KEY = "key-of-ann"
CHAT = {"messages": [{"role": "user", "content": 'Say "total_tokens":99999, please.'}], "max_tokens": 40}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "streamed chat": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "streamed chat with usage": (
        "/v1/chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "completion": ("/v1/completions", {"prompt": "a b c", "max_tokens": 30}),
    "streamed completion": ("/v1/completions", {"prompt": "a b c", "max_tokens": 30, "stream": True}),
    "llama.cpp's own": ("/completion", {"prompt": "a b c", "n_predict": 20, "stream": True}),
    "messages": ("/v1/messages", CHAT),
    "streamed messages": ("/v1/messages", {**CHAT, "stream": True}),
    "responses": ("/v1/responses", {"input": "a b c", "max_output_tokens": 20}),
    "streamed responses": ("/v1/responses", {"input": "a b c", "max_output_tokens": 20, "stream": True}),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Llama]]:
    folder = tmp_path_factory.mktemp("tokens")
    clients = [Client("ann", hashlib.sha256(KEY.encode()).hexdigest())]
    with llama(folder, "--metrics") as one:
        (folder / "g").mkdir()
        backend = Backend("m", "M", "Q4", "model", (server(one.port),))
        with running(folder / "g", [backend], clients, count_tokens=True) as gateway:
            yield gateway, one


def counted(gateway: Running) -> int:
    text = httpx.get(f"{gateway.metrics}/metrics/clients", trust_env=False).text
    found = re.search(r'^magi_client_tokens_total\{client="ann"\} (\d+)$', text, re.M)
    return int(found[1]) if found else 0


def computed(one: Llama) -> int:
    """The server's own count: tokens of prompts, also those from its cache, and of answers."""
    names = ("prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total")
    text = one.get("/metrics").text
    return sum(int(re.search(rf"^llamacpp:{name} (\d+)$", text, re.M)[1]) for name in names)  # type: ignore[index]


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
def test_tokens_are_those_of_the_server(served: tuple[Running, Llama], path: str, body: dict[str, Any]) -> None:
    gateway, one = served
    before, server_before = counted(gateway), computed(one)
    with gateway.client(KEY) as client:
        answer = client.post(path, json={"model": "m", "ignore_eos": True, **body})
    assert answer.status_code == 200, answer.text
    assert counted(gateway) - before == computed(one) - server_before


def test_client_that_leaves_a_stream_has_used_what_it_was_sent(served: tuple[Running, Llama]) -> None:
    gateway, _one = served
    before = counted(gateway)
    body = {"model": "m", **CHAT, "max_tokens": 15000, "stream": True, "ignore_eos": True}
    with gateway.client(KEY) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        seen = sum(next(lines).startswith("data: ") for _ in range(400))
    time.sleep(0.2)
    with contextlib.suppress(httpx.HTTPError):
        answer.close()
    assert counted(gateway) - before >= seen
