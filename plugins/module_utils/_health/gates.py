# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a rollout asks a host's servers besides a token: golden prompts, and their speed against a floor.

One server after another and one request at a time, so that times and speeds are not those of servers that compete.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .._core.text import clean_text
from .machine import Machine
from .probe import Server, ask_server, tokens_per_second, wake
from .prompts import Answer, Problem, Prompt, problems, prompts_for, read_answer, request_body
from .waking import ROOM_SECONDS

# A speed is the median of as many requests of as many tokens.
SPEED_ROUNDS = 3
SPEED_TOKENS = 32
CHAT, COMPLETION = "/v1/chat/completions", "/completion"
_FAILURES = (OSError, http.client.HTTPException, ValueError)

# Sends a body to a path of a server, with a number of seconds for the answer.
Ask = Callable[[Server, str, Any, float], "tuple[int, bytes]"]


@dataclass(frozen=True)
class Floor:
    """The speed that is wanted: tokens a second, and the part of the reference that may be lost (0.2 is a fifth)."""

    min_tokens_per_second: float | None = None
    max_slowdown: float | None = None

    def is_set(self) -> bool:
        return self.min_tokens_per_second is not None or self.max_slowdown is not None


@dataclass(frozen=True)
class Asked:
    """What a server answered: how many prompts it was asked, its speed and the reference, and what is wrong."""

    name: str
    model_id: str
    port: int
    prompts: int
    tokens_per_second: float | None
    reference: float | None
    problems: tuple[Problem, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "problems": [asdict(problem) for problem in self.problems]}


def ask_host(
    servers: Sequence[Server],
    machine: Machine,
    *,
    prompts: Sequence[Prompt],
    floor: Floor,
    references: Mapping[str, float],
    timeout: float,
    only_measure: bool = False,
) -> list[Asked]:
    """Ask a host's servers that generate text, one after another; references are the last accepted speeds, by name.

    only_measure asks no prompts, and only servers that are ready and have no reference: nothing is wrong with them.
    """
    found = []
    for server in servers:
        name = str(server["name"])
        if not generates_text(server) or (only_measure and name in references):
            continue
        problem = _not_ready(server, machine, may_start=not only_measure)
        if only_measure:
            speed = None if problem else measured_speed(server, _send, timeout)
            found += [] if speed is None else [_asked(server, 0, speed, None, ())]
        elif problem:
            found.append(_asked(server, 0, None, references.get(name), [Problem("any", "answer", problem)]))
        else:
            found.append(ask_one(server, prompts, floor, references.get(name), _send, timeout))
    return found


def generates_text(server: Server) -> bool:
    """Whether a server's model is one that answers prompts."""
    return str(server.get("kind") or "model") == "model"


def _not_ready(server: Server, machine: Machine, *, may_start: bool) -> str | None:
    """Return why nothing may be sent to a server, None if it is ready; one that sleeps is started."""
    name = str(server["name"])
    status = machine.status([name])[name]
    if status.state == "sleeping":
        problem = wake(server, float(server["max_startup_time"]) + ROOM_SECONDS) if may_start else "it sleeps"
        if problem:
            return problem
        status = machine.status([name])[name]
    found = machine.probe([server], {name: status.pid})[name]
    return None if found.state == "ready" else f"it is {found.state}" + (f": {found.detail}" if found.detail else "")


def _send(server: Server, path: str, body: Any, seconds: float) -> tuple[int, bytes]:
    return ask_server(server, "POST", path, seconds, body)


def _asked(
    server: Server, prompts: int, speed: float | None, reference: float | None, found: Sequence[Problem]
) -> Asked:
    names = str(server["name"]), str(server["model_id"])
    return Asked(*names, int(server["port"]), prompts, speed, reference, tuple(found))


def ask_one(
    server: Server, prompts: Sequence[Prompt], floor: Floor, reference: float | None, ask: Ask, timeout: float
) -> Asked:
    """Ask a server its prompts and measure its speed; timeout is in seconds, for each request."""
    mine = prompts_for(prompts, server)
    found = [problem for prompt in mine for problem in _ask_prompt(server, prompt, ask, timeout)]
    speed = None
    if floor.is_set() and generates_text(server):
        speed = measured_speed(server, ask, timeout)
        found += too_slow(speed, floor, reference)
    return _asked(server, len(mine), speed, reference, found)


def _ask_prompt(server: Server, prompt: Prompt, ask: Ask, timeout: float) -> list[Problem]:
    limit = prompt["expect"].get("max_seconds")
    seconds = timeout if limit is None else float(limit)
    began = time.monotonic()
    try:
        code, text = ask(server, CHAT, request_body(prompt), seconds)
        body = json.loads(text) if code == 200 else None
    except socket.timeout:
        return [Problem(prompt["name"], "answer" if limit is None else "max_seconds", f"none within {seconds:g} s")]
    except _FAILURES as error:
        return [Problem(prompt["name"], "answer", f"{type(error).__name__} {clean_text(str(error), 200)}")]
    answer: Answer | None = read_answer(body, time.monotonic() - began)
    if answer is None:
        shown = clean_text(text.decode("utf-8", "replace"), 200)
        return [Problem(prompt["name"], "answer", f"{CHAT} answered {code}: {shown}")]
    try:
        return problems(prompt, answer)
    except re.error as error:
        # Newer Pythons, such as the controller's, know more of it.
        return [Problem(prompt["name"], "matches", f"the host's Python does not know this regular expression: {error}")]


def measured_speed(server: Server, ask: Ask, timeout: float) -> float | None:
    """Return a server's tokens a second, the median of some requests; None where it does not report them."""
    body = {"prompt": "Hello", "n_predict": SPEED_TOKENS, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    speeds = []
    for _round in range(SPEED_ROUNDS):
        try:
            code, text = ask(server, COMPLETION, body, timeout)
            answer = json.loads(text) if code == 200 else None
        except _FAILURES:
            return None
        speed = tokens_per_second(answer, SPEED_TOKENS) if isinstance(answer, dict) else None
        if speed is None:
            return None
        speeds.append(speed)
    return round(statistics.median(speeds), 1)


def too_slow(speed: float | None, floor: Floor, reference: float | None) -> list[Problem]:
    """Return what is wrong with a speed; reference is the last one that was good, None if there is none."""
    if speed is None:
        return [Problem("speed", "tokens_per_second", f"{COMPLETION} gave no speed of generation in time")]
    wanted = floor.min_tokens_per_second
    if wanted is not None and speed < wanted:
        detail = f"{speed:g} tokens/s, rollout_min_tokens_per_second is {wanted:g}"
        return [Problem("speed", "tokens_per_second", detail)]
    if floor.max_slowdown is not None and reference and speed < reference * (1 - floor.max_slowdown):
        lost = f"{1 - speed / reference:.0%} less than the {reference:g} measured before"
        detail = f"{speed:g} tokens/s, {lost}, rollout_max_slowdown is {floor.max_slowdown:g}"
        return [Problem("speed", "tokens_per_second", detail)]
    return []


def new_reference(speed: float, reference: float | None, floor: Floor) -> float:
    """Return what later speeds are compared with: the best so far, so that small losses do not add up unseen.

    A rollout that accepts any loss (max_slowdown 1) begins again with what it has measured.
    """
    return speed if reference is None or floor.max_slowdown == 1 else max(speed, reference)


def problem_lines(servers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each problem of servers, as Asked.as_dict has them: prompt, model, server, property."""
    return [
        f'prompt "{problem["prompt"]}", model {server["model_id"]} (server {server["name"]}), '
        f"property {problem['property']}: {problem['detail']}"
        for server in servers
        for problem in server["problems"]
    ]
