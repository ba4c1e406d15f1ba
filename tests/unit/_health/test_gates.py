# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout asks servers besides a token: prompts and speed, of whom, and what is wrong with the answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._health import gates
from ansible_collections.magi.llama.plugins.module_utils._health.gates import (
    Floor,
    ask_host,
    ask_one,
    new_reference,
    problem_lines,
    too_slow,
)
from ansible_collections.magi.llama.plugins.module_utils._health.observations import (
    accepted_speeds,
    note_accepted_speeds,
    update_observations,
)
from ansible_collections.magi.llama.plugins.module_utils._health.outcome import Outcome
from ansible_collections.magi.llama.plugins.module_utils._health.probe import Probe
from ansible_collections.magi.llama.plugins.module_utils._health.prompts import validate_prompts

SERVER = {"name": "a", "model_id": "qwen3", "port": 8080, "host": "127.0.0.1", "kind": "model", "max_startup_time": 5}
PROMPTS = validate_prompts([{"name": "capital", "prompt": "Capital?", "expect": {"contains": "Paris"}}], "p.yml")


class FakeAnswers:
    """Answers prompts with a text and completions with speeds, in turn; an exception is raised."""

    def __init__(self, text: Any = "Paris", speeds: Sequence[float] = (100.0,), code: int = 200) -> None:
        self.text, self.speeds, self.code = text, list(speeds), code
        self.asked: list[tuple[str, float]] = []

    def __call__(self, server: Mapping[str, Any], path: str, body: Any, seconds: float) -> tuple[int, bytes]:
        self.asked.append((path, seconds))
        if path == gates.COMPLETION:
            speed = self.speeds[len(self.asked) % len(self.speeds)]
            timings = {"predicted_n": 32, "predicted_ms": 31 * 1000 / speed}
            return self.code, json.dumps({"content": "x", "timings": timings}).encode()
        if isinstance(self.text, Exception):
            raise self.text
        message = {"choices": [{"message": {"content": self.text}}], "usage": {"completion_tokens": 1}}
        return self.code, json.dumps(message).encode()


def test_prompts_alone_measure_no_speed() -> None:
    answers = FakeAnswers()
    asked = ask_one(SERVER, PROMPTS, Floor(), None, answers, 60)
    assert (asked.prompts, asked.tokens_per_second, asked.problems) == (1, None, ())
    assert answers.asked == [(gates.CHAT, 60)]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (FakeAnswers("Rome"), 'property contains: "Paris" is missing; the answer is "Rome"'),
        (FakeAnswers(socket.timeout("timed out")), "property answer: none within 60 s"),
        (FakeAnswers(ConnectionResetError("reset")), "property answer: ConnectionResetError reset"),
        (FakeAnswers(code=500), "property answer: /v1/chat/completions answered 500"),
    ],
)
def test_failed_property_names_prompt_model_and_server(answers: FakeAnswers, expected: str) -> None:
    asked = ask_one(SERVER, PROMPTS, Floor(), None, answers, 60)
    [line] = problem_lines([asked.as_dict()])
    assert line.startswith('prompt "capital", model qwen3 (server a), ')
    assert expected in line


def test_max_seconds_is_the_deadline_of_its_prompt() -> None:
    prompts = validate_prompts([{"prompt": "a", "expect": {"max_seconds": 2}}], "p.yml")
    answers = FakeAnswers(socket.timeout("timed out"))
    asked = ask_one(SERVER, prompts, Floor(), None, answers, 60)
    assert answers.asked == [(gates.CHAT, 2.0)]
    assert [problem.property for problem in asked.problems] == ["max_seconds"]


def test_speed_is_the_median_of_three_requests() -> None:
    answers = FakeAnswers(speeds=(100.0, 20.0, 90.0))
    assert ask_one(SERVER, (), Floor(50.0), None, answers, 60).tokens_per_second == 90.0
    assert [path for path, _seconds in answers.asked] == [gates.COMPLETION] * 3


@pytest.mark.parametrize(
    ("speed", "floor", "reference", "says"),
    [
        (50.0, Floor(50.0), None, None),
        (49.9, Floor(50.0), None, "49.9 tokens/s, rollout_min_tokens_per_second is 50"),
        (80.0, Floor(None, 0.2), 100.0, None),
        (79.0, Floor(None, 0.2), 100.0, "79 tokens/s, 21% less than the 100 measured before"),
        # Nothing is known to compare with.
        (1.0, Floor(None, 0.2), None, None),
        (1.0, Floor(), 100.0, None),
        (None, Floor(50.0), None, "no speed of generation"),
    ],
)
def test_speed_below_the_floor_is_a_problem(
    speed: float | None, floor: Floor, reference: float | None, says: str | None
) -> None:
    found = too_slow(speed, floor, reference)
    assert [says in problem.detail for problem in found] == ([] if says is None else [True])


@pytest.mark.parametrize(
    ("speed", "reference", "floor", "expected"),
    [
        (90.0, None, Floor(None, 0.2), 90.0),
        (110.0, 100.0, Floor(None, 0.2), 110.0),
        # Ten rollouts that lose 15 % each are not ten accepted ones.
        (85.0, 100.0, Floor(None, 0.2), 100.0),
        (85.0, 100.0, Floor(80.0), 100.0),
        (50.0, 100.0, Floor(None, 1), 50.0),
    ],
)
def test_reference_is_the_best_speed_until_any_is_accepted(
    speed: float, reference: float | None, floor: Floor, expected: float
) -> None:
    assert new_reference(speed, reference, floor) == expected


def machine(states: Mapping[str, str]) -> Any:
    def probe(servers: Sequence[Mapping[str, Any]], _pids: Any) -> dict[str, Probe]:
        return {server["name"]: Probe(states[server["name"]]) for server in servers}

    return SimpleNamespace(
        status=lambda names: {name: SimpleNamespace(state="running", pid=1) for name in names}, probe=probe
    )


def ask(servers: Sequence[Mapping[str, Any]], states: Mapping[str, str], **more: Any) -> list[Any]:
    given = {"prompts": PROMPTS, "floor": Floor(), "references": {}, "timeout": 60, **more}
    return ask_host(servers, machine(states), **given)


def test_nothing_is_sent_to_a_server_that_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have its port."""
    answers = FakeAnswers()
    monkeypatch.setattr(gates, "_send", answers)
    [asked] = ask([SERVER], {"a": "wrong_identity"})
    assert [problem.detail for problem in asked.problems] == ["it is wrong_identity"]
    assert answers.asked == []


def test_embedding_servers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_send", FakeAnswers())
    servers = [SERVER, {**SERVER, "name": "e", "kind": "embedding"}]
    assert [asked.name for asked in ask(servers, {"a": "ready"})] == ["a"]


def test_only_measure_takes_ready_servers_without_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_send", FakeAnswers())
    servers = [{**SERVER, "name": name} for name in ("known", "new", "loading")]
    states = {"known": "ready", "new": "ready", "loading": "loading"}
    found = ask(servers, states, references={"known": 90.0}, only_measure=True)
    assert [(asked.name, asked.prompts, asked.tokens_per_second, asked.problems) for asked in found] == [
        ("new", 0, 100.0, ())
    ]


def test_accepted_speed_outlives_the_process_that_it_was_measured_of(tmp_path: Path) -> None:
    """It is what the next rollout's process is compared with."""
    state_dir = str(tmp_path)

    def ready(pid: int) -> None:
        outcome = Outcome("a", 8080, None, pid, "ready", True, seconds_to_ready=1.0)
        update_observations(state_dir, [outcome], {"a": f"revision-{pid}"})

    ready(7)
    note_accepted_speeds(state_dir, {"a": 100.0})
    ready(8)
    assert accepted_speeds(state_dir) == {"a": 100.0}
