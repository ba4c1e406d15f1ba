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


def wave_turns(waves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the waves of hosts that change together, by step: {"waves": {host: [wave or None]}, "steps": [step]}.

    A host does one wave at most at each step. A wave that needs other hosts to serve a model is in a step in which none
    of these does the same. A step says whether any host drains a server in it (drains), needs another one (needs), or
    has servers that are ready after it (readies). A host whose waves are not waves has none: it fails by itself.
    """
    turns: dict[str, list[Any]] = {}
    needed: list[set[str]] = []
    for host, own in waves.items():
        turns[host] = []
        for wave in _waves(own):
            while set(wave["needs"]) & (needed[len(turns[host])] if len(turns[host]) < len(needed) else set()):
                turns[host].append(None)
            turns[host].append(wave)
            if len(turns[host]) > len(needed):
                needed.append(set())
            needed[len(turns[host]) - 1].update(wave["needs"])
    return {"waves": turns, "steps": [_step(turns.values(), number) for number in range(len(needed))]}


def _step(turns: Iterable[Sequence[Any]], number: int) -> dict[str, bool]:
    waves = [waves[number] for waves in turns if number < len(waves) and waves[number]]
    parts = (("drains", "drain"), ("needs", "needs"), ("readies", "ready"))
    return {name: any(wave[part] for wave in waves) for name, part in parts}


def _waves(found: Any) -> Sequence[Any]:
    try:
        check(found, WAVES, "they")
    except DocumentError:
        return []
    return list(found)


def wave_at(turns: Mapping[str, Any], host: str, step: int) -> dict[str, Any]:
    """Return the wave of a host at a step, one without anything to do where it has none."""
    waves = turns["waves"].get(host, ())
    idle: dict[str, Any] = {"drain": [], "actions": {}, "ready": [], "needs": [], "away": {}}
    return (waves[step] if step < len(waves) else None) or idle


def has_touched(turns: Mapping[str, Any], host: str, step: int) -> bool:
    """Return whether a host's waves up to a step drain, restart or stop a server: before, the old ones serve alone."""
    waves = [wave_at(turns, host, number) for number in range(step + 1)]
    return any(wave["drain"] or {"restart", "stop"} & set(wave["actions"].values()) for wave in waves)


def ready_models(answers: Sequence[Any], host: str) -> dict[str, Any]:
    """Return the models that gateways see ready: {"gateways": number, "here": on this host, "elsewhere": on others}.

    answers are those of gateway_state with state read. A model is ready elsewhere if every gateway sees it on another
    host, and here if one sees it on this one. Gateways that were not reached, or are not set up yet, do not count.
    """
    seen = [answer["ready"] for answer in answers if isinstance(answer, Mapping) and answer.get("exists")]
    here = {model for ready in seen for model, hosts in ready.items() if hosts.get(host)}
    elsewhere = [
        {model for model, hosts in ready.items() if any(hosts[one] for one in hosts if one != host)} for ready in seen
    ]
    return {
        "gateways": len(seen),
        "here": sorted(here),
        "elsewhere": sorted(set.intersection(*elsewhere)) if elsewhere else [],
    }
