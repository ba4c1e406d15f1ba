# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal of an upgrade: what another llama-server changes, and why it cannot run a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._plan.rehearsal import (
    CandidateError,
    find_candidate,
    lost_flags,
    rehearse,
)

GIB = 1024**3
FLAGS = {
    "ctx_size": {"spelling": "--ctx-size", "value": True},
    "cache_type_k": {"spelling": "--cache-type-k", "value": True, "choices": ["f16", "q8_0"]},
    "draft_max": {"spelling": "--draft-max", "value": True},
}
PROFILE = {
    "name": "production",
    "parameters": {"ctx_size": 4096, "cache_type_k": "q8_0"},
    "enabled_models": [{"model": "a", "parameters": {"draft_max": 16}}, {"model": None, "parameters": {}}],
}


def runtime(build: int | None, *without: str, **more: Any) -> dict[str, Any]:
    flags = {name: flag for name, flag in FLAGS.items() if name not in without}
    found = {"path": f"/opt/{build}/llama-server", "installed": True, "flavour": "llama.cpp", "build": build}
    return {**found, "flags": flags, **more}


def plan(*flags: str, ram: int = GIB, action: str = "keep") -> dict[str, Any]:
    memory = {"ram_bytes": ram, "vram_bytes": 0}
    return {"servers": [{"name": "a", "action": action, "argv": ["/x", *flags], "memory": memory}]}


def test_lost_flags_are_those_that_the_build_in_use_has() -> None:
    now = runtime(9000, "ctx_size")
    # ctx_size is wrong already, and no fault of the candidate.
    assert lost_flags(PROFILE, now, runtime(9100, "ctx_size", "draft_max")) == [
        'this llama-server has no flag "draft_max".'
    ]
    assert lost_flags(PROFILE, now, runtime(9100)) == []


def test_value_that_the_candidate_refuses_is_lost_too() -> None:
    candidate = runtime(9100)
    candidate["flags"]["cache_type_k"] = {**FLAGS["cache_type_k"], "choices": ["f16"]}
    [text] = lost_flags(PROFILE, runtime(9000), candidate)
    assert "cache_type_k" in text and "f16" in text


def test_lost_flag_names_the_profile_and_makes_no_plan() -> None:
    def unused(_runtime: Any) -> Any:
        raise AssertionError

    found = rehearse(PROFILE, runtime(9000), runtime(9100, "draft_max"), plan(), unused)
    assert found["problems"] == ['profile "production": this llama-server has no flag "draft_max".']


@pytest.mark.parametrize(
    ("now", "candidate", "expected"),
    [
        (7000, 9000, ["closes CVE-2026-33298, CVE-2026-27940, CVE-2026-21869"]),
        (8200, 8300, ["has known remote vulnerabilities: CVE-2026-21869"]),
        (8908, 9000, []),
        (9000, 8000, ["has known remote vulnerabilities: CVE-2026-27940, CVE-2026-21869"]),
        (9000, None, ["vulnerabilities: unknown, as the candidate is not upstream's or does not report its build"]),
    ],
)
def test_vulnerabilities_closed_and_open_are_shown(now: int, candidate: int | None, expected: list[str]) -> None:
    found = rehearse(PROFILE, runtime(now), runtime(candidate), plan(), lambda _runtime: plan())
    assert found["lines"][1:-1] == expected


def test_first_line_names_both_builds() -> None:
    found = rehearse(PROFILE, runtime(9000), runtime(9100), plan(), lambda _runtime: plan())
    assert found["lines"][0] == "/opt/9100/llama-server is llama.cpp build 9100; in use is llama.cpp build 9000"
    none = rehearse(PROFILE, runtime(None, installed=False), runtime(9100), plan(), lambda _runtime: plan())
    assert none["lines"][0].endswith("in use is none")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (plan(), ["the planned memory of every server stays as it is"]),
        (plan(ram=2 * GIB), ["planned memory:", "a: RAM 1.0 GiB → 2.0 GiB"]),
        (
            plan("--log-jsonl"),
            [
                "the planned memory of every server stays as it is",
                "the command lines of 1 servers differ by more than the program",
            ],
        ),
        ({"servers": []}, ["planned memory:", "a: not with the candidate"]),
        (plan(action="stop"), ["planned memory:", "a: not with the candidate"]),
    ],
)
def test_memory_and_flags_of_servers_are_compared(other: dict[str, Any], expected: list[str]) -> None:
    found = rehearse(PROFILE, runtime(9000), runtime(9100), plan(), lambda _runtime: other)
    assert (found["lines"][1:], found["problems"]) == (expected, [])


def test_plan_that_fails_is_a_problem() -> None:
    def too_large(_runtime: Any) -> Any:
        raise MagiError("too little memory")

    assert rehearse(PROFILE, runtime(9000), runtime(9100), plan(), too_large)["problems"] == ["too little memory"]


def test_candidate_is_a_program_or_a_folder_that_has_it(tmp_path: Path) -> None:
    program = tmp_path / "build/bin/llama-server"
    program.parent.mkdir(parents=True)
    program.touch()
    (tmp_path / "empty").mkdir()
    assert find_candidate(str(program)) == find_candidate(str(tmp_path)) == str(program)
    with pytest.raises(CandidateError, match="a folder without llama-server, bin/llama-server"):
        find_candidate(str(tmp_path / "empty"))
    with pytest.raises(CandidateError, match="not on this host"):
        find_candidate(str(tmp_path / "nowhere"))
