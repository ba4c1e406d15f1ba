# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Golden prompts: a file of prompts with properties that every answer must have, checked before a host is touched."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.errors import MagiError
from .._core.text import clean_text

KEYS = ("name", "prompt", "system", "models", "max_tokens", "expect")
PROPERTIES = ("contains", "matches", "not_matches", "min_tokens", "max_seconds", "json")
MAX_TOKENS = 256
MOST_TOKENS = 8192
MOST_PROMPTS = 200
# What a failed property shows of the answer.
SHOWN = 160

Prompt = Mapping[str, Any]


class PromptsError(MagiError):
    """A file of golden prompts that cannot be used: names the file, the key and what is valid there."""


@dataclass(frozen=True)
class Answer:
    """A server's answer to a prompt: its text, how many tokens it has (None where unknown), and the time it took."""

    text: str
    tokens: int | None
    seconds: float


@dataclass(frozen=True)
class Problem:
    """A property that an answer does not have; "answer" where there is no answer."""

    prompt: str
    property: str
    detail: str


def validate_prompts(content: Any, source: str) -> list[dict[str, Any]]:
    """Return the prompts of a file with every key filled in. Raises PromptsError.

    A prompt is {name, prompt, system, models, max_tokens, expect}; models are patterns of ids, expect a mapping of
    PROPERTIES, of which contains, matches and not_matches are lists.
    """
    if not isinstance(content, list) or not content:
        raise PromptsError(f"{source}: it is a list of prompts, each with the keys prompt and expect.")
    if len(content) > MOST_PROMPTS:
        raise PromptsError(f"{source}: it has {len(content)} prompts, at most {MOST_PROMPTS} are asked.")
    prompts = [_prompt(entry, f"{source}: prompts[{index}]", index) for index, entry in enumerate(content)]
    names = [prompt["name"] for prompt in prompts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PromptsError(f'{source}: two prompts have the name "{twice}". Name each differently.')
    return prompts


def _prompt(entry: Any, where: str, index: int) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise PromptsError(f"{where}: it is a mapping with the keys prompt and expect.")
    _known(entry, KEYS, where)
    if not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise PromptsError(f"{where}.prompt: it is missing; it is the text that the model is asked.")
    if not isinstance(entry.get("expect"), dict) or not entry["expect"]:
        raise PromptsError(f"{where}.expect: it is missing; it is a mapping of {', '.join(PROPERTIES)}.")
    _known(entry["expect"], PROPERTIES, f"{where}.expect")
    return {
        "name": _text(entry.get("name", f"prompt {index + 1}"), f"{where}.name"),
        "prompt": entry["prompt"],
        "system": _text(entry.get("system", ""), f"{where}.system"),
        "models": _texts(entry.get("models", ["*"]), f"{where}.models"),
        "max_tokens": _number(entry.get("max_tokens", MAX_TOKENS), f"{where}.max_tokens", int, MOST_TOKENS),
        "expect": {name: _EXPECTED[name](value, f"{where}.expect.{name}") for name, value in entry["expect"].items()},
    }


def _known(given: Mapping[Any, Any], valid: Sequence[str], where: str) -> None:
    for key in given:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(valid)}."
            raise PromptsError(f'{where}: there is no key "{key}"; {hint}')


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PromptsError(f"{where} is {value!r}: it is a text.")
    return value


def _texts(value: Any, where: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str) and one for one in values):
        raise PromptsError(f"{where} is {value!r}: it is a text or a list of texts.")
    return values


def _patterns(value: Any, where: str) -> list[str]:
    for pattern in _texts(value, where):
        try:
            re.compile(pattern)
        except re.error as error:
            raise PromptsError(f'{where} has "{pattern}", which is not a regular expression: {error}.') from error
    return _texts(value, where)


def _number(value: Any, where: str, kind: type, most: float) -> Any:
    valid = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, valid) or not 0 < value <= most:
        what = "a number" if kind is float else "a whole number"
        raise PromptsError(f"{where} is {value!r}: it is {what} above 0, {most:g} at most.")
    return value


def _json(value: Any, where: str) -> Any:
    if value is True:
        return []
    if value is False:
        raise PromptsError(f"{where} is false: leave it out, or set true or a list of the keys that the answer has.")
    return _texts(value, where)


_EXPECTED: dict[str, Callable[[Any, str], Any]] = {
    "contains": _texts,
    "matches": _patterns,
    "not_matches": _patterns,
    "min_tokens": lambda value, where: _number(value, where, int, MOST_TOKENS),
    "max_seconds": lambda value, where: _number(value, where, float, 3600),
    "json": _json,
}


def prompts_for(prompts: Sequence[Prompt], server: Mapping[str, Any]) -> list[Prompt]:
    """Return the prompts for a server, by the id of its model."""
    model = str(server["model_id"])
    return [prompt for prompt in prompts if any(fnmatch.fnmatchcase(model, pattern) for pattern in prompt["models"])]


def request_body(prompt: Prompt) -> dict[str, Any]:
    """Return the body for /v1/chat/completions: greedy, so that a model and a build answer the same again."""
    system = [{"role": "system", "content": prompt["system"]}] if prompt["system"] else []
    return {
        "messages": [*system, {"role": "user", "content": prompt["prompt"]}],
        "max_tokens": prompt["max_tokens"],
        "temperature": 0,
        "seed": 1,
        "cache_prompt": False,
    }


def read_answer(body: Any, seconds: float) -> Answer | None:
    """Return the answer in a body of /v1/chat/completions; None where it has none."""
    try:
        text = body["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        return None
    usage = body.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Answer(text, tokens if isinstance(tokens, int) else None, seconds) if isinstance(text, str) else None


def problems(prompt: Prompt, answer: Answer) -> list[Problem]:
    """Return the expected properties that an answer does not have, in the order of the file."""
    found = ((name, _detail(name, wanted, answer)) for name, wanted in prompt["expect"].items())
    return [Problem(prompt["name"], name, detail) for name, detail in found if detail]


def _detail(name: str, wanted: Any, answer: Answer) -> str | None:
    """Return how an answer misses a property; None if it has it."""
    shown = f'the answer is "{clean_text(answer.text, SHOWN)}"' if answer.text else "the answer is empty"
    if name == "min_tokens":
        known = answer.tokens is not None and answer.tokens >= wanted
        return None if known else f"{answer.tokens} tokens, {wanted} wanted; {shown}"
    if name == "max_seconds":
        return None if answer.seconds <= wanted else f"{answer.seconds:.1f} s, {wanted:g} s allowed"
    if name == "json":
        missing = _missing_of_json(answer.text, wanted)
        return f"{missing}; {shown}" if missing else None
    for text in wanted:
        if name == "contains" and text not in answer.text:
            return f'"{text}" is missing; {shown}'
        if name == "matches" and not re.search(text, answer.text):
            return f'nothing matches "{text}"; {shown}'
        if name == "not_matches" and re.search(text, answer.text):
            return f'something matches "{text}"; {shown}'
    return None


def _missing_of_json(text: str, keys: Sequence[str]) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not keys:
        return None
    if not isinstance(found, dict):
        return "it is JSON, but not an object"
    missing = [key for key in keys if key not in found]
    return f"the key {', '.join(missing)} is missing" if missing else None
