# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The OpenAPI document: held in the repository, complete, and what the console answers agrees with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from magi_llama_console.app import create_app
from magi_llama_console.openapi import FILE, as_text
from magi_llama_console.settings import Settings
from schemathesis.specs.openapi.checks import ignored_auth
from support.console import RunningConsole

HELD: dict[str, Any] = json.loads(FILE.read_text())
OPERATIONS = [(path, method) for path, item in HELD["paths"].items() for method in item]
PROBLEM = "#/components/schemas/ProblemDocument"
# Streams that do not end, and what would sign the test itself out.
NOT_CALLED = r"/events$|/session$"


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def test_held_document_is_that_of_the_endpoints() -> None:
    app = create_app(Settings(inventory=Path("/nonexistent"), data=Path("/nonexistent")))
    message = "console/openapi.json is out of date: run python -m magi_llama_console.openapi"
    assert as_text(app.openapi()) == FILE.read_text(), message


def test_document_is_openapi_3_1_and_every_reference_is_there() -> None:
    assert HELD["openapi"].startswith("3.1.")
    wanted = {node["$ref"] for node in nodes(HELD) if isinstance(node.get("$ref"), str)}
    there = {f"#/components/schemas/{name}" for name in HELD["components"]["schemas"]}
    assert wanted - there == set()


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=" ".join)
def test_every_endpoint_says_what_it_answers_and_its_errors(path: str, method: str) -> None:
    operation = HELD["paths"][path][method]
    assert operation.get("description") or operation.get("summary")
    answers = operation["responses"]
    assert any(status.startswith("2") for status in answers)
    for status, answer in answers.items():
        if int(status) >= 400:
            assert answer["content"]["application/problem+json"]["schema"] == {"$ref": PROBLEM}, status
    if path != "/health":
        assert {"401", "403", "422", "500"} <= set(answers)


def test_old_endpoints_are_all_there() -> None:
    old = {
        "/health": "get",
        "/api/models/registry": "get",
        "/api/models/servers": "get",
        "/api/models/status": "get",
        "/api/models/management/servers": "get",
        "/api/models/start": "post",
        "/api/models/stop": "post",
        "/api/models/{name}/start": "post",
        "/api/models/{name}/stop": "post",
        "/api/models/profiles": "get",
        "/api/models/profile/activate": "post",
    }
    assert {path: method for path, method in old.items() if method not in HELD["paths"].get(path, {})} == {}


@pytest.fixture
def schema(console: RunningConsole) -> Any:
    console.wait(console.submit("status")["id"])
    found = schemathesis.openapi.from_dict(HELD)
    found.config.update(base_url=console.url)
    return found


def test_endpoints_answer_what_the_document_says(schema: Any, console: RunningConsole) -> None:
    """Generated requests, valid and invalid ones, to each endpoint that only reads, with the role read."""
    headers = {"Authorization": console.read.headers["Authorization"]}
    selected = schema.include(method="GET").exclude(path_regex=NOT_CALLED)
    called = 0
    for result in selected.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=8,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def check(case: Any) -> None:
            # It sends wrong tokens, of which the console takes only a few from one address.
            case.call_and_validate(headers=headers, excluded_checks=[ignored_auth])

        check()
        called += 1
    assert called >= 20


def test_requests_that_change_something_are_refused_with_the_role_read(schema: Any, console: RunningConsole) -> None:
    for result in schema.exclude(method="GET").exclude(path_regex=NOT_CALLED).get_all_operations():
        operation = result.ok()
        path = operation.path.format_map({"name": "x", "job_id": "x", "hash": "x", "host": "x", "model_id": "x"})
        assert console.read.request(operation.method, path, json={}).status_code in (403, 422), operation.label
        assert console.anonymous.request(operation.method, path, json={}).status_code in (401, 422), operation.label
