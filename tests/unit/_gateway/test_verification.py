# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway's answer shows: the model that was asked for, or the error with its fix."""

from __future__ import annotations

import json

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.verification import (
    Answer,
    connection_fix,
    error_of,
    questions_of,
)

WHOLE, STREAMED = questions_of("a", "model")
EVENT = json.dumps({"model": "a", "choices": []})
STREAM = f"data: {EVENT}\n\n: ping\n\ndata: {EVENT}\n\ndata: [DONE]\n\n"
GOOD = json.dumps({"model": "a", "choices": [{}]})


def refusal(code: object, message: str = "No.") -> str:
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": code}})


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("model", ["/v1/completions", "/v1/completions"]),
        ("embedding", ["/v1/embeddings"]),
        ("reranker", ["/v1/rerank"]),
        ("a kind of the future", ["/v1/completions", "/v1/completions"]),
    ],
)
def test_question_is_by_kind(kind: str, paths: list[str]) -> None:
    questions = questions_of("a", kind)
    assert [question.path for question in questions] == paths
    assert all(question.body["model"] == "a" for question in questions)
    assert [question.is_streamed for question in questions] == [False, True][: len(questions)]


@pytest.mark.parametrize("served", ["a", None])
def test_answer_of_the_model_is_good(served: str | None) -> None:
    assert error_of(WHOLE, Answer(200, GOOD, served), has_key=True) is None
    assert error_of(STREAMED, Answer(200, STREAM, served), has_key=True) is None


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (WHOLE, Answer(200, GOOD, "b"), "was answered by the model b"),
        (WHOLE, Answer(200, GOOD, ""), "was answered without X-Magi-Model"),
        (WHOLE, Answer(200, '{"model": "b", "choices": []}', "a"), "was answered by the model b"),
        (WHOLE, Answer(200, '{"model": "a"}', "a"), "answered without choices"),
        (WHOLE, Answer(200, "<html>", "a"), "answered what is not JSON"),
        (WHOLE, Answer(200, "[" * 100_000, "a"), "answered what is not JSON"),
        (STREAMED, Answer(200, STREAM.replace('"a"', '"b"'), "a"), "was answered by the model b"),
        (STREAMED, Answer(200, STREAM.replace("data: [DONE]", ""), "a"), "ended before its last event"),
        (STREAMED, Answer(200, "data: [DONE]\n", "a"), "without choices"),
        (STREAMED, Answer(200, 'data: {"error": 1}\n\ndata: [DONE]\n', "a"), "without choices"),
    ],
)
def test_answer_of_another_kind_is_an_error(question, answer: Answer, expected: str) -> None:
    assert expected in str(error_of(question, answer, has_key=True))


@pytest.mark.parametrize(
    ("status", "code", "has_key", "fix"),
    [
        (401, "invalid_api_key", False, "set verify_api_key to the key of a client in gateway_api_keys"),
        (401, "invalid_api_key", True, "verify_api_key is not the key of a client in gateway_api_keys"),
        # llama-server's own: the gateway's key of the servers is stale.
        (401, 401, True, "run gateway.yml, which reads servers_api_key_file"),
        (403, "model_not_allowed", True, "use the key of a client of all models"),
        (404, "model_not_found", True, "run gateway.yml"),
        (404, 404, True, "check verify_gateway_url"),
        (429, "rate_limit_exceeded", True, "use the key of a client without one"),
        (429, "queue_full", True, "gateway_max_queue"),
        (502, "bad_gateway", True, "see the server's log"),
        (503, "model_not_ready", True, "verify.yml without verify_through"),
        (504, "gateway_timeout", True, "gateway_answer_timeout"),
    ],
)
def test_refusal_names_the_fix(status: int, code: object, has_key: bool, fix: str) -> None:
    error = str(error_of(WHOLE, Answer(status, refusal(code), None), has_key=has_key))
    assert error.startswith(f"/v1/completions answered {status} No. Fix: ")
    assert fix in error


@pytest.mark.parametrize("text", ["", "<html>", "[]", '{"error": "x"}', '{"error": null}', '{"error": {"code": []}}'])
def test_refusal_of_any_text_is_an_error(text: str) -> None:
    assert str(error_of(WHOLE, Answer(500, text, None), has_key=True)).startswith("/v1/completions answered 500")


@pytest.mark.parametrize(
    ("failure", "fix"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate (_ssl.c:1)", "set verify_ca_file"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, not valid for 'x'", "set verify_gateway_url"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] IP address mismatch", "set verify_gateway_url"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "has no TLS"),
        ("All connection attempts failed", "run gateway.yml"),
    ],
)
def test_failed_connection_names_the_fix(failure: str, fix: str) -> None:
    assert fix in connection_fix(failure)
