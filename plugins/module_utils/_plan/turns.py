# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Turns: the waves of several hosts side by side, so that hosts do not take away the same model at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core.documents import DocumentError, check
from .document import WAVES

# Of a host: no change has that many steps, and all hosts wait for them.
MAX_WAVES = 400


def wave_turns(waves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the waves of hosts that change together, by step: {"waves": {host: [wave or None]}, "steps": [step]}.

    A host does one wave at most at each step. A wave that needs other hosts to serve a model is in a step in which none
    of these does the same. One that takes a model from its host for good comes after those that bring the model to
    others, which it then needs; unless these wait for it. A step says whether any host drains a server in it (drains),
    needs another one (needs), or has servers that are ready after it (readies). A host whose waves are not waves has
    none: it fails by itself.
    """
    left = {host: [*_waves(own)] for host, own in waves.items()}
    turns: dict[str, list[Any]] = {host: [] for host in left}
    while any(left.values()):
        step = _next_step(left, is_patient=True) or _next_step(left, is_patient=False)
        for host, wave in step.items():
            others = (wave for other, own in turns.items() if other != host for wave in own if wave)
            there = {model for one in others for model in _brought(one)} & {*wave.get("drops", ())}
            step[host] = {**wave, "needs": sorted({*wave["needs"], *there})} if there else wave
        for host in turns:
            turns[host].append(step.get(host))
            if host in step:
                del left[host][0]
    for own in turns.values():
        while own and own[-1] is None:
            del own[-1]
    count = max(map(len, turns.values()), default=0)
    return {"waves": turns, "steps": [_step(turns.values(), number) for number in range(count)]}


def _next_step(left: Mapping[str, Sequence[Mapping[str, Any]]], *, is_patient: bool) -> dict[str, Any]:
    """The next wave of each host that may have its turn; where no one waits for other hosts, that of one at least."""
    step: dict[str, Any] = {}
    for host, waves in left.items():
        if not waves:
            continue
        coming = {model for other in left if other != host for wave in left[other] for model in _brought(wave)}
        waited_for = coming & {*waves[0].get("drops", ())}
        if any(_is_needed(waves[0], other) for other in step.values()):
            continue
        if not waited_for or not (is_patient or step):
            step[host] = waves[0]
    return step


def _brought(wave: Mapping[str, Any]) -> Iterable[str]:
    models: Mapping[str, str] = wave.get("new", {})
    return models.values()


def _is_needed(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one of two hosts has to serve a model while the other drains it."""
    pairs = ((one, other), (other, one))
    return any(set(first["needs"]) & {*second["needs"], *second["leaves"]} for first, second in pairs)


def _step(turns: Iterable[Sequence[Any]], number: int) -> dict[str, bool]:
    waves = [waves[number] for waves in turns if number < len(waves) and waves[number]]
    parts = (("drains", "drain"), ("needs", "needs"), ("readies", "ready"))
    return {name: any(wave[part] for wave in waves) for name, part in parts}


def _waves(found: Any) -> Sequence[Any]:
    try:
        check(found, WAVES, "they")
    except DocumentError:
        return []
    return list(found)[:MAX_WAVES]


def wave_at(turns: Mapping[str, Any], host: str, step: int) -> dict[str, Any]:
    """Return the wave of a host at a step, one without anything to do where it has none.

    Its later are the servers that a later step starts, and its begins those that this one does: what is not there yet.
    """
    waves = turns["waves"].get(host, ())
    begun = [[name for name, action in wave["actions"].items() if action == "start"] if wave else [] for wave in waves]
    more = {
        "begins": [*begun, []][min(step, len(begun))],
        "later": [name for names in begun[step + 1 :] for name in names],
    }
    idle: dict[str, Any] = {"drain": [], "actions": {}, "ready": [], "needs": [], "leaves": [], "away": {}}
    return {**((waves[step] if step < len(waves) else None) or idle), **more}


def has_touched(turns: Mapping[str, Any], host: str, step: int) -> bool:
    """Return whether a host's waves up to a step drain, restart or stop a server: before, the old ones serve alone."""
    waves = [wave_at(turns, host, number) for number in range(step + 1)]
    return any(wave["drain"] or {"restart", "stop"} & set(wave["actions"].values()) for wave in waves)


def ready_models(answers: Sequence[Any], host: str) -> dict[str, Any]:
    """Return the models that gateways see ready: {"gateways": number, "here": {model: servers}, "elsewhere": [model]}.

    answers are those of gateway_state with state read. A model is ready elsewhere if every gateway sees it on another
    host, and here if one sees it on this one, with as many servers as all gateways see. Gateways that were not reached,
    or are not set up yet, do not count.
    """
    seen = [answer["ready"] for answer in answers if isinstance(answer, Mapping) and answer.get("exists")]
    here: dict[str, int] = {}
    for ready in seen:
        for model, hosts in ready.items():
            # One that a single gateway does not see is not counted on.
            count = min(int(one.get(model, {}).get(host, 0)) for one in seen)
            if hosts.get(host):
                here[model] = max(count, 1)
    elsewhere = [
        {model for model, hosts in ready.items() if any(hosts[one] for one in hosts if one != host)} for ready in seen
    ]
    return {
        "gateways": len(seen),
        "here": here,
        "elsewhere": sorted(set.intersection(*elsewhere)) if elsewhere else [],
    }
