# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The openai package as the gateway's client, and Anthropic's messages by httpx: real HAProxy, real llama-server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from support.architectures import write_model
from support.bed import PARAMETERS
from support.gateway import KEY, OTHER_KEY, Q2, Q3, Q4, TOOLS_TEMPLATE, Gateway

EMBEDDING = "tiny-bert-f16"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
# A server that holds back the first bytes of a character leaves out the first event of a response or message. A random
# model begins up to a fifth of its answers with such bytes; its most probable token is not one of them.
GREEDY = {"temperature": 0}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "Its weather", "parameters": CITY}}]


@pytest.fixture
def gateway(deployed: Gateway) -> Gateway:
    """A chat model that knows tools, one that does not, and an embedding model."""
    bed = deployed.bed
    if not (bed.models / f"{EMBEDDING}.gguf").exists():
        write_model(bed.models / f"{EMBEDDING}.gguf", "bert")
    template = bed.root / "tools.jinja"
    template.write_text(TOOLS_TEMPLATE)
    with_tools = {"model": Q4, "parameters": {"chat_template_file": str(template), "ctx_size": 4096}}
    profile = {"enabled_models": [with_tools, Q2, EMBEDDING], "parameters": {**PARAMETERS, "parallel": 2}}
    (bed.inventory / "profiles/clients.yml").write_text(json.dumps(profile))
    if bed.variables["profile"] != "clients":
        deployed.set(profile="clients")
        bed.run("site")
    deployed.wait_up(3)
    return deployed


Connect = Callable[..., openai.OpenAI]


@pytest.fixture
def connect(gateway: Gateway) -> Iterator[Connect]:
    """Makes clients that repeat nothing, unless asked to."""
    with ExitStack() as stack:

        def make(key: str = KEY, retries: int = 0) -> openai.OpenAI:
            plain = openai.DefaultHttpxClient(trust_env=False)
            made = openai.OpenAI(
                base_url=f"{gateway.url}/v1", api_key=key, max_retries=retries, timeout=60, http_client=plain
            )
            return stack.enter_context(made)

        yield make


@pytest.fixture
def client(connect: Connect) -> openai.OpenAI:
    return connect()


def test_models_are_listed(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [EMBEDDING, Q2, Q4]
    assert {model.object for model in listed} == {"model"}


def test_chat_is_answered_by_its_model(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny-llama", messages=MESSAGES, max_tokens=4, extra_body={"ignore_eos": True}
    )
    answer = raw.parse()
    assert (raw.headers["x-magi-model"], raw.headers["x-magi-tier"], answer.model) == (Q4, "Q4", Q4)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage and answer.usage.completion_tokens == 4


def test_stream_arrives_in_parts(client: openai.OpenAI) -> None:
    options: Any = {"stream_options": {"include_usage": True}, "extra_body": {"ignore_eos": True}}
    arrived = []
    for part in client.chat.completions.create(model=Q2, messages=MESSAGES, max_tokens=300, stream=True, **options):
        arrived.append(time.monotonic())
        assert part.model == Q2
        usage = part.usage
    assert usage and usage.completion_tokens == 300
    # A buffer between would deliver it as a whole: its parts come over the time that the tokens take.
    assert len(arrived) > 100
    assert arrived[-1] > arrived[0] + 0.01


def test_completion_and_embeddings(client: openai.OpenAI) -> None:
    assert client.completions.create(model=Q2, prompt="a", max_tokens=2).model == Q2
    found = client.embeddings.create(model=EMBEDDING, input=["hello", "world"])
    assert [entry.index for entry in found.data] == [0, 1]
    assert {len(entry.embedding) for entry in found.data} == {256}


def test_long_bodies_arrive_whole(client: openai.OpenAI) -> None:
    padded = client.chat.completions.create(
        model=Q2, messages=MESSAGES, max_tokens=2, extra_body={"padding": "x" * 1_000_000}
    )
    assert padded.model == Q2
    # The server's own error, which has counted what arrived.
    with pytest.raises(openai.BadRequestError, match=r"request \(1\d{6} tokens\) exceeds the available context size"):
        client.chat.completions.create(model=Q2, messages=[{"role": "user", "content": "hi " * 350_000}])


def test_tools_reach_the_model_and_return(client: openai.OpenAI) -> None:
    """A random model calls no tool by itself; the tools are in its prompt, and a call with its result is taken."""
    create: Callable[..., Any] = client.chat.completions.create
    without = create(model=Q4, messages=MESSAGES, max_tokens=2)
    asked = create(model=Q4, messages=MESSAGES, max_tokens=2, tools=TOOLS)
    assert asked.usage.prompt_tokens > without.usage.prompt_tokens + 100
    assert asked.choices[0].finish_reason in ("length", "stop", "tool_calls")
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    returned: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    final = create(model=Q4, messages=returned, max_tokens=2, tools=TOOLS)
    assert final.usage.prompt_tokens > asked.usage.prompt_tokens
    # What a schema allows is all that a random model can say.
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    formed = create(model=Q4, messages=MESSAGES, max_tokens=400, temperature=0, response_format=form)
    assert json.loads(formed.choices[0].message.content)["city"] in ("Rome", "Paris")


def test_responses_are_answered_and_streamed(client: openai.OpenAI) -> None:
    create: Callable[..., Any] = client.responses.create
    asked = {"model": Q4, "input": "Hello", "max_output_tokens": 4, **GREEDY}
    answer = create(**asked)
    assert (answer.object, answer.model) == ("response", Q4)
    events = [event.type for event in create(**asked, stream=True)]
    assert (events[0], events[-1]) == ("response.created", "response.completed")


def test_parallel_requests_are_all_answered(gateway: Gateway) -> None:
    async def ask() -> list[Any]:
        plain = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, http_client=plain
        ) as client:
            models = (Q2, Q4) * 8
            calls = [client.chat.completions.create(model=one, messages=MESSAGES, max_tokens=4) for one in models]
            return [answer.model for answer in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [Q2, Q4] * 8


def test_errors_are_the_classes_of_openai(connect: Connect, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong:
        connect("wrong").models.list()
    assert (wrong.value.code, wrong.value.type) == ("invalid_api_key", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match=Q4) as unknown:
        client.chat.completions.create(model=Q3, messages=MESSAGES)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.PermissionDeniedError) as denied:
        connect(OTHER_KEY).chat.completions.create(model=Q4, messages=MESSAGES)
    assert denied.value.code == "model_not_allowed"
    with pytest.raises(openai.RateLimitError) as busy:
        for _request in range(8):
            connect(OTHER_KEY).completions.create(model=Q2, prompt="a", max_tokens=1)
    assert busy.value.code == "rate_limit_exceeded"
    assert busy.value.response.headers["retry-after"] == "5"
    # A server's error passes as it is.
    with pytest.raises(openai.APIStatusError, match="Missing tool function"):
        client.chat.completions.create(model=Q4, messages=MESSAGES, tools=[{"type": "function"}])  # type: ignore[list-item]


def test_client_waits_for_a_model_that_comes_back(gateway: Gateway, connect: Connect) -> None:
    """503 has Retry-After, by which the client's own retries bridge a restart."""
    gateway.bed.run("stop", "-e", f"servers={Q2}")
    with pytest.raises(openai.InternalServerError) as away:
        connect().completions.create(model=Q2, prompt="a", max_tokens=1)
    assert (away.value.status_code, away.value.code) == (503, "model_not_ready")
    delay = int(away.value.response.headers["retry-after"])
    with ThreadPoolExecutor(1) as pool:
        patient = connect(retries=20)
        began = time.monotonic()
        asked = pool.submit(patient.completions.with_raw_response.create, model=Q2, prompt="a", max_tokens=1)
        gateway.bed.run("start", "-e", "servers=all")
        raw = asked.result()
    assert raw.parse().model == Q2
    assert raw.retries_taken >= 1
    # It has waited as long as it was asked to.
    assert time.monotonic() - began >= delay * raw.retries_taken


def test_messages_of_anthropic(gateway: Gateway) -> None:
    body = {"model": Q4, "max_tokens": 4, "messages": MESSAGES, **GREEDY}
    with gateway.client(None) as plain:
        headers = {"X-Api-Key": KEY, "anthropic-version": "2023-06-01"}
        answer = plain.post("/v1/messages", json=body, headers=headers)
        assert (answer.status_code, answer.headers["x-magi-model"]) == (200, Q4), answer.text
        assert (answer.json()["type"], answer.json()["model"]) == ("message", Q4)
        counted = plain.post("/v1/messages/count_tokens", json=body, headers=headers)
        assert counted.json()["input_tokens"] > 0
        streamed = plain.post("/v1/messages", json={**body, "stream": True}, headers=headers)
        events = [line[7:] for line in streamed.text.splitlines() if line.startswith("event: ")]
        assert (events[0], events[-1]) == ("message_start", "message_stop")
