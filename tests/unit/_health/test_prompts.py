# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden prompts: which files are taken, and which answers have what is expected of them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._health.prompts import (
    Answer,
    PromptsError,
    problems,
    prompts_for,
    read_answer,
    request_body,
    validate_prompts,
)


def one(**expect: Any) -> dict[str, Any]:
    return validate_prompts([{"prompt": "Capital of France?", "expect": expect}], "p.yml")[0]


def test_prompt_has_every_key_filled_in() -> None:
    assert one(contains="Paris", json=True) == {
        "name": "prompt 1",
        "prompt": "Capital of France?",
        "system": "",
        "models": ["*"],
        "max_tokens": 256,
        "expect": {"contains": ["Paris"], "json": []},
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"prompts": []}, "p.yml: it is a list of prompts"),
        ([], "p.yml: it is a list of prompts"),
        (["hello"], "p.yml: prompts[0]: it is a mapping"),
        ([{"prompt": "a", "expects": {}}], 'p.yml: prompts[0]: there is no key "expects"; did you mean "expect"?'),
        ([{"prompt": " ", "expect": {"contains": "a"}}], "p.yml: prompts[0].prompt: it is missing"),
        ([{"prompt": "a"}], "p.yml: prompts[0].expect: it is missing; it is a mapping of contains, matches"),
        ([{"prompt": "a", "expect": {"contain": "b"}}], 'prompts[0].expect: there is no key "contain"; did you mean'),
        ([{"prompt": "a", "expect": {"contains": 4}}], "prompts[0].expect.contains is 4: it is a text or a list"),
        ([{"prompt": "a", "expect": {"matches": "("}}], 'prompts[0].expect.matches has "(", which is not a regular'),
        ([{"prompt": "a", "expect": {"min_tokens": 1.5}}], "prompts[0].expect.min_tokens is 1.5: it is a whole number"),
        ([{"prompt": "a", "expect": {"max_seconds": 0}}], "expect.max_seconds is 0: it is a number above 0, 3600 at"),
        ([{"prompt": "a", "expect": {"max_seconds": True}}], "expect.max_seconds is True: it is a number above 0"),
        ([{"prompt": "a", "expect": {"json": False}}], "expect.json is false: leave it out"),
        ([{"prompt": "a", "models": [], "expect": {"json": True}}], "prompts[0].models is []: it is a text or a list"),
        ([{"prompt": "a", "name": "x", "expect": {"json": True}}] * 2, 'two prompts have the name "x"'),
    ],
)
def test_file_that_cannot_be_used_names_the_key(content: Any, says: str) -> None:
    with pytest.raises(PromptsError) as caught:
        validate_prompts(content, "p.yml")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("expect", "text", "missing"),
    [
        ({"contains": "Paris"}, "It is Paris.", []),
        ({"contains": ["Paris", "France"]}, "It is Paris.", ["contains"]),
        ({"matches": r"\bparis\b"}, "It is Paris.", ["matches"]),
        ({"matches": r"(?i)\bparis\b"}, "It is Paris.", []),
        ({"not_matches": "as an AI"}, "I cannot say, as an AI", ["not_matches"]),
        ({"not_matches": "as an AI"}, "Paris", []),
        ({"json": True}, '{"city": "Paris"}', []),
        ({"json": True}, "Here it is: {}", ["json"]),
        ({"json": ["city", "country"]}, '{"city": "Paris"}', ["json"]),
        ({"json": "city"}, '["city"]', ["json"]),
        ({"min_tokens": 5}, "x", []),
        ({"min_tokens": 6}, "x", ["min_tokens"]),
        ({"max_seconds": 2}, "x", []),
        ({"max_seconds": 1.9}, "x", ["max_seconds"]),
        ({"contains": "a", "matches": "b"}, "", ["contains", "matches"]),
    ],
)
def test_answer_is_held_to_each_property(expect: dict[str, Any], text: str, missing: list[str]) -> None:
    found = problems(one(**expect), Answer(text, 5, 2.0))
    assert [problem.property for problem in found] == missing
    assert all(problem.prompt == "prompt 1" and problem.detail for problem in found)


def test_problem_says_what_is_missing_and_shows_the_answer() -> None:
    [problem] = problems(one(contains="Paris"), Answer("Rome\x1b[2J", 1, 0.1))
    assert problem.detail.startswith('"Paris" is missing; the answer is "Rome')
    assert "\x1b" not in problem.detail


def test_unknown_number_of_tokens_is_not_enough() -> None:
    assert problems(one(min_tokens=1), Answer("Paris", None, 0.1)) != []


def test_prompts_are_selected_by_the_id_of_the_model() -> None:
    prompts = validate_prompts(
        [
            {"name": "all", "prompt": "a", "expect": {"json": True}},
            {"name": "qwen", "prompt": "a", "models": "qwen3-*", "expect": {"json": True}},
        ],
        "p.yml",
    )
    names = {
        model: [prompt["name"] for prompt in prompts_for(prompts, {"model_id": model})]
        for model in ("qwen3-8b-q4_k_m", "llama-8b-q4_k_m")
    }
    assert names == {"qwen3-8b-q4_k_m": ["all", "qwen"], "llama-8b-q4_k_m": ["all"]}


def test_request_is_greedy_and_has_the_system_prompt_first() -> None:
    prompt = validate_prompts([{"prompt": "a", "system": "Be brief.", "expect": {"json": True}}], "p.yml")[0]
    body = request_body(prompt)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (body["temperature"], body["cache_prompt"], body["max_tokens"]) == (0, False, 256)


@pytest.mark.parametrize("body", [None, [], {}, {"choices": []}, {"choices": [{"message": {"content": None}}]}])
def test_body_without_an_answer_is_none(body: Any) -> None:
    assert read_answer(body, 1.0) is None


def test_answer_is_read_with_its_tokens() -> None:
    body = {"choices": [{"message": {"content": "Paris"}}], "usage": {"completion_tokens": 2}}
    assert read_answer(body, 1.0) == Answer("Paris", 2, 1.0)
