# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a gateway is asked to verify it, and what an answer shows: the model that was asked for, or what to do."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .._core.exchange import authority, request
from .._core.text import clean_text
from .._health.probe import PROBE_TOKENS, TOKEN_REQUESTS, asked_address, tokens_per_second
from .fleet import Backend

# Requests at once to one gateway: a probe is to show no queue.
ASKED_AT_ONCE = 8
MAX_ANSWER_BYTES = 2**20
# By the code of a gateway's error: what to do about it.
FIXES = {
    "model_not_allowed": "the client of verify_api_key has `models` without this one in gateway_api_keys: use the key "
    "of a client of all models",
    "model_not_found": "the gateway does not route to it: run gateway.yml",
    "rate_limit_exceeded": "the client of verify_api_key has a rate limit below two requests for each model: use the "
    "key of a client without one",
    "queue_full": "gateway_max_queue requests wait for it already: try again, or give it more servers",
    "model_not_ready": "none of its servers is ready or free: verify.yml without verify_through probes each one, and "
    "/stats on the gateway's metrics port has the reason behind each",
    "bad_gateway": "its server closed the connection: see the server's log",
    "gateway_timeout": "its server was silent for gateway_answer_timeout: see the server's log",
}
NO_KEY = "set verify_api_key to the key of a client in gateway_api_keys"
WRONG_KEY = (
    "verify_api_key is not the key of a client in gateway_api_keys there: correct it, or run gateway.yml if the client "
    "is new"
)
SERVERS_KEY = "its server refuses the key that the gateway sends it: run gateway.yml, which reads servers_api_key_file"
NOT_THIS_GATEWAY = (
    "what answers there is not this gateway: check verify_gateway_url, gateway_host and the gateway's port"
)


@dataclass(frozen=True)
class Question:
    """A request for a model, and the field that its answer must have. names_model: whether the answer names it."""

    path: str
    body: Mapping[str, Any]
    field: str
    is_streamed: bool = False
    names_model: bool = True


@dataclass(frozen=True)
class Answer:
    """A gateway's answer; served is its header X-Magi-Model, None where it was not looked at."""

    status: int
    text: str
    served: str | None = None


def questions_of(model: str, kind: str) -> list[Question]:
    """What is asked of a model by its kind: one completion at once and one streamed, one embedding, or one ranking."""
    if kind in TOKEN_REQUESTS and kind != "model":
        path, body, field = TOKEN_REQUESTS[kind]
        return [Question(path, {"model": model, **body}, field, names_model=kind != "decision")]
    body = {"model": model, "prompt": "Hello", "max_tokens": PROBE_TOKENS, "ignore_eos": True}
    whole = Question("/v1/completions", body, "choices")
    return [whole, Question("/v1/completions", {**body, "stream": True}, "choices", is_streamed=True)]


def error_of(question: Question, answer: Answer, *, has_key: bool) -> str | None:
    """Return what is wrong with an answer and how to fix it, as the end of a sentence; None for a good one."""
    if answer.status != 200:
        return _refusal(question, answer, has_key)
    model = str(question.body["model"])
    if answer.served is not None and answer.served != model:
        by = f"by the model {clean_text(answer.served, 100)}" if answer.served else "without X-Magi-Model"
        return f"{question.path} was answered {by}: {NOT_THIS_GATEWAY}"
    try:
        parts = _events(answer.text) if question.is_streamed else [json.loads(answer.text)]
    except (ValueError, RecursionError):
        return f"{question.path} answered what is not JSON: {clean_text(answer.text, 200)}"
    if not all(isinstance(part, dict) and question.field in part for part in parts) or not parts:
        what = "the stream has an event" if question.is_streamed else f"{question.path} answered"
        return f"{what} without {question.field}: {clean_text(answer.text, 200)}"
    others = sorted({str(part.get("model")) for part in parts} - {model}) if question.names_model else []
    if others:
        return f"{question.path} was answered by the model {clean_text(', '.join(others), 100)}"
    if question.is_streamed and not answer.text.rstrip().endswith("data: [DONE]"):
        return "the stream ended before its last event: see the server's log"
    return None


def _events(text: str) -> list[Any]:
    """The events of a stream, without comments and the last one. Raises ValueError for one that is not JSON."""
    data = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(part) for part in data if part != "[DONE]"]


def _refusal(question: Question, answer: Answer, has_key: bool) -> str:
    try:
        error = json.loads(answer.text)["error"]
        code, message = error.get("code"), str(error.get("message"))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        code, message = None, answer.text
    fix = FIXES.get(code) if isinstance(code, str) else None
    if code == "invalid_api_key":
        fix = WRONG_KEY if has_key else NO_KEY
    elif answer.status == 401 and fix is None:
        fix = SERVERS_KEY
    elif answer.status in (404, 405) and fix is None:
        fix = NOT_THIS_GATEWAY
    said = f"{question.path} answered {answer.status} {clean_text(message, 200)}"
    return f"{said} Fix: {fix}" if fix else said


def connection_fix(error: str) -> str:
    """Return how to fix a connection that failed with this text."""
    if "CERTIFICATE_VERIFY_FAILED" in error or "certificate verify failed" in error:
        if "mismatch" in error or "doesn't match" in error:
            return (
                "its certificate is for another name: set verify_gateway_url to an address with a name of the "
                "certificate, such as https://gateway.example.com:8443"
            )
        return (
            "its certificate is not trusted here: set verify_ca_file to a file with the certificate of its authority "
            "(PEM); without that variable the system's authorities are trusted"
        )
    if "WRONG_VERSION_NUMBER" in error or "record layer" in error:
        return "what listens there has no TLS: check verify_gateway_url"
    return (
        "run gateway.yml if nothing listens there (the log: journalctl -u magi-llama-gateway), or open the port to the "
        "controller"
    )


def models_of(backends: Sequence[Backend]) -> list[dict[str, str]]:
    """The models that a gateway routes to, each with its kind."""
    return [{"model_id": backend.model_id, "kind": backend.kind} for backend in backends]


class Outcome:
    """What came of a model's questions, one after another until the first error."""

    def __init__(self, model: str, via: str) -> None:
        self.result: dict[str, Any] = {
            **{"name": model, "ok": True, "via": via, "seconds": 0.0, "streamed_seconds": None},
            **{"tokens_per_second": None, "error": None},
        }

    def note(self, question: Question, seconds: float, error: str | None, text: str = "") -> bool:
        """Take the answer to a question; returns whether the next one is to be asked."""
        self.result["streamed_seconds" if question.is_streamed else "seconds"] = seconds
        if error is not None:
            self.result.update(ok=False, error=error)
        elif not question.is_streamed:
            self.result["tokens_per_second"] = tokens_per_second(json.loads(text))
        return error is None


def ask_from_host(
    listens: tuple[str, int], models: Sequence[Mapping[str, str]], key: str | None, timeout: float
) -> list[dict[str, Any]]:
    """Ask the gateway of this host, which listens without TLS, for each model; timeout is for each answer."""
    address = (asked_address(listens[0]), listens[1])
    if not models:
        return []
    with ThreadPoolExecutor(min(ASKED_AT_ONCE, len(models))) as pool:
        return list(pool.map(lambda model: _ask_for_model(address, model, key, timeout), models))


def _ask_for_model(
    address: tuple[str, int], model: Mapping[str, str], key: str | None, timeout: float
) -> dict[str, Any]:
    outcome = Outcome(model["model_id"], "host")
    for question in questions_of(model["model_id"], model["kind"]):
        began, text = time.monotonic(), ""
        try:
            status, body = request(
                address, "POST", question.path, seconds=timeout, limit=MAX_ANSWER_BYTES, body=question.body, key=key
            )
            text = body.decode("utf-8", "replace")
            error = error_of(question, Answer(status, text), has_key=bool(key))
        except socket.timeout:
            error = f"{question.path}: no answer within {timeout:g} s"
        except OSError as failure:
            where = authority(*address)
            error = f"http://{where}: {clean_text(str(failure), 200)}. Fix: {connection_fix(str(failure))}"
        except (http.client.HTTPException, ValueError) as failure:
            error = f"{question.path}: {type(failure).__name__} {clean_text(str(failure), 200)}"
        if not outcome.note(question, time.monotonic() - began, error, text):
            break
    return outcome.result
