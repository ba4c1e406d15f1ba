# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signing in: who has a token is not kept out by those of the same address who have none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response
from magi_llama_console.api.problems import Problem
from magi_llama_console.api.security import cookie_name
from magi_llama_console.api.v1.session import SignIn, sign_in
from magi_llama_console.attempts import ATTEMPTS, NOTED, Attempts
from magi_llama_console.settings import Settings
from magi_llama_console.store.sqlite import SqliteStore
from magi_llama_console.tokens import TokenReader, add_token


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Any]:
    settings = Settings(inventory=tmp_path, data=tmp_path, port=8123)
    store = SqliteStore(settings.database)
    yield SimpleNamespace(settings=settings, store=store, tokens=TokenReader(settings.token_file), attempts=Attempts())
    asyncio.run(store.close())


def status(console: Any, token: str, address: str = "192.0.2.1") -> int:
    request: Any = SimpleNamespace(headers={}, client=SimpleNamespace(host=address))
    try:
        asyncio.run(sign_in(SignIn(token=token), request, Response(), console))
    except Problem as problem:
        return problem.status
    return 201


def test_right_token_signs_in_after_many_wrong_ones_of_its_address(console: Any) -> None:
    right = add_token(console.settings.token_file, "alice", "read")
    statuses = [status(console, "wrong") for _ in range(ATTEMPTS + 1)]
    assert statuses == [401] * ATTEMPTS + [429]
    assert status(console, right) == 201


def test_refusals_fill_only_so_much_of_the_audit_log(console: Any) -> None:
    for number in range(NOTED + 5):
        assert status(console, "wrong", f"192.0.2.{number}") == 401
    assert len(asyncio.run(console.store.audit(1000))) == NOTED


def test_cookie_is_that_of_the_consoles_port(console: Any) -> None:
    assert cookie_name(console) == "magi-console-8123"
    console.settings = Settings(inventory=Path("/"), data=Path("/"), port=9000, is_behind_proxy=True)
    assert cookie_name(console) == "__Host-magi-console-9000"
