# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What another llama-server would change on a host: flags that it lacks, memory, and known vulnerabilities."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from .._core.errors import MagiError
from .._core.stand_ins import without_stand_ins
from .._core.text import format_bytes
from .._runtime.probe import known_holes
from .._runtime.render_flags import valid_parameters

Fact = Mapping[str, Any]

# Where a folder has it: a build's own, and a prefix.
PLACES = ("llama-server", "bin/llama-server", "build/bin/llama-server")
KINDS_OF_MEMORY = ("ram_bytes", "vram_bytes")


class CandidateError(MagiError):
    """Raised for a candidate that is not on the host."""


def find_candidate(path: str) -> str:
    """Return the llama-server that a path on the host means: itself, or the one in a folder. Raises CandidateError."""
    found = next((place for place in (path, *_in_folder(path)) if os.path.isfile(place)), None)
    if found is None:
        where = f"a folder without {', '.join(PLACES)}" if os.path.isdir(path) else "not on this host"
        raise CandidateError(
            f"runtime_candidate {path} is {where}. Unpack the build on the host, and name llama-server or its folder."
        )
    return found


def _in_folder(path: str) -> list[str]:
    return [os.path.join(path, place) for place in PLACES]


def rehearse(
    profile: Mapping[str, Any], now: Fact, candidate: Fact, plan: Mapping[str, Any], plan_with: Callable[[Fact], Any]
) -> dict[str, Any]:
    """Return {lines, problems}: what changes with the candidate, and why it cannot run the profile, as sentences.

    now and candidate are facts llama_runtime, plan is the plan with the one that is there; plan_with makes one with
    another and may raise MagiError.
    """
    problems = [f'profile "{profile["name"]}": {text}' for text in lost_flags(profile, now, candidate)]
    lines = [_build_line(now, candidate), *_hole_lines(now, candidate)]
    if not problems:
        try:
            lines += _memory_lines(plan, plan_with(candidate))
        except MagiError as error:
            problems.append(str(error))
    return {"lines": lines, "problems": problems}


def lost_flags(profile: Mapping[str, Any], now: Fact, candidate: Fact) -> list[str]:
    """Return a sentence for each parameter of a profile that the candidate refuses, and the one now does not."""
    given = [profile.get("parameters") or {}]
    given += [entry.get("parameters") or {} for entry in profile.get("enabled_models") or ()]
    found: dict[str, None] = {}
    for parameters in given:
        known = {str(error) for error in valid_parameters(parameters, now["flags"])[1]}
        found.update(
            (text, None)
            for text in map(str, valid_parameters(parameters, candidate["flags"])[1])
            # With a build that is not there yet, nothing is known of it.
            if text not in known or not now["flags"]
        )
    return list(found)


def _build_line(now: Fact, candidate: Fact) -> str:
    return f"{candidate['path']} is {_name(candidate)}; in use is {_name(now)}"


def _name(runtime: Fact) -> str:
    if not runtime.get("installed"):
        return "none"
    build = "of an unknown build" if runtime.get("build") is None else f"build {runtime['build']}"
    return f"{runtime.get('flavour') or 'llama-server'} {build}"


def _hole_lines(now: Fact, candidate: Fact) -> list[str]:
    """Return what is known of vulnerabilities in both builds; nothing where there is none in either."""
    before, after = _holes(now), _holes(candidate)
    if after is None:
        return ["vulnerabilities: unknown, as the candidate is not upstream's or does not report its build"]
    closed = [name for name in before or () if name not in after]
    lines = [f"closes {', '.join(closed)}"] if closed else []
    return lines + ([f"has known remote vulnerabilities: {', '.join(after)}"] if after else [])


def _holes(runtime: Fact) -> list[str] | None:
    if not runtime.get("installed") or runtime.get("flavour") != "llama.cpp" or runtime.get("build") is None:
        return None
    return [name for name, _fixed in known_holes(runtime["build"])]


def _memory_lines(plan: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the servers whose memory, command line or existence is another with the candidate."""
    before = {str(server["name"]): server for server in _staying(plan)}
    lines = []
    changed = 0
    for server in _staying(other):
        old = before.pop(str(server["name"]), None)
        if old is None:
            lines.append(f"{server['name']}: only the candidate runs it")
            continue
        changed += _flags_of(old) != _flags_of(server)
        moves = [
            f"{kind[:-6].upper()} {format_bytes(old['memory'].get(kind) or 0)} → {format_bytes(new)}"
            for kind in KINDS_OF_MEMORY
            for new in [server["memory"].get(kind) or 0]
            if new != (old["memory"].get(kind) or 0)
        ]
        lines += [f"{server['name']}: {', '.join(moves)}"] if moves else []
    lines += [f"{name}: not with the candidate" for name in before]
    first = "the planned memory of every server stays as it is" if not lines else "planned memory:"
    flags = f"the command lines of {changed} servers differ by more than the program" if changed else ""
    return [first, *lines, *([flags] if flags else [])]


def _staying(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [server for server in without_stand_ins(plan["servers"]) if server["action"] != "stop"]


def _flags_of(server: Mapping[str, Any]) -> list[str]:
    return list(server["argv"][1:])
