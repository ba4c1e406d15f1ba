# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gateway_models: what it may have, which models it is valid for, and what HAProxy does by it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError
from ansible_collections.magi.llama.plugins.module_utils._gateway.limits import check_models, limits_of, missing_models
from ansible_collections.magi.llama.plugins.module_utils._gateway.settings import Settings
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, Limits, running, server

NAMES = {"Q4": ["a-q4", "b-q4"], "a": ["a-q4"], "a-q4": ["a-q4"], "b-q4": ["b-q4"]}
BACKENDS = [Backend(name, name, "Q4", "model", ()) for name in ("a-q4", "b-q4")]


def test_most_specific_name_counts_most() -> None:
    models = {"a-q4": {"max_queue": 1}, "Q4": {"max_queue": 9, "queue_timeout": 5}, "a": {"queue_timeout": 4}}
    found = limits_of(Limits.common(Settings(answer_timeout=77)), models, NAMES, BACKENDS)
    assert (found["a-q4"].max_queue, found["a-q4"].queue_timeout, found["a-q4"].answer_timeout) == (1, 4, 77)
    assert (found["b-q4"].max_queue, found["b-q4"].queue_timeout) == (9, 5)


def test_name_that_no_server_has_is_a_warning() -> None:
    assert missing_models({"c": {}}, NAMES) == ["gateway_models.c: no server has it; there are Q4, a, a-q4, b-q4."]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (5, "gateway_models.m must be a mapping with max_queue, queue_timeout, answer_timeout, hang_timeout"),
        ({"max_queu": 5}, "gateway_models.m: unknown max_queu, did you mean max_queue; there are"),
        ({"max_queue": 0}, "gateway_models.m.max_queue must be a whole number from 1 to 100000, not 0"),
        ({"queue_timeout": "5s"}, "not '5s'"),
        ({"answer_timeout": True}, "not True"),
    ],
)
def test_invalid_limits_are_refused(entry: Any, says: str) -> None:
    with pytest.raises(GatewayError) as error:
        check_models({"m": entry})
    assert says in str(error.value)


@pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
def test_limits_of_one_model_are_not_those_of_another(tmp_path: Path) -> None:
    models = {"a-q4": {"max_queue": 1, "queue_timeout": 2}, "b-q4": {"answer_timeout": 1}}
    with FakeServer("a-q4", 3.0) as slow, FakeServer("b-q4", 3.0) as silent:
        backends = [
            Backend("a-q4", "A", "Q4", "model", (server(slow.port, 1),)),
            Backend("b-q4", "B", "Q4", "model", (server(silent.port, 1),)),
        ]
        with running(tmp_path, backends, models=models) as gateway, ThreadPoolExecutor(4) as pool:
            served = pool.submit(gateway.ask, "a-q4")
            time.sleep(0.3)
            begin = time.monotonic()
            waits = pool.submit(gateway.ask, "a-q4")
            time.sleep(0.3)
            full = gateway.ask("a-q4")
            unanswered = gateway.ask("b-q4")
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert (unanswered.status_code, unanswered.json()["error"]["code"]) == (504, "gateway_timeout")
            assert (waits.result().status_code, served.result().status_code) == (503, 200)
            assert time.monotonic() - begin > 1.9
