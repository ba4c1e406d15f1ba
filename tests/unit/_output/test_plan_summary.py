# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last lines of plan.yml."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._output.plan_summary import plan_summary_lines
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import result_document


def host(digit: str, *actions: str, seconds: float = 0.0) -> dict[str, Any]:
    return {"hash": digit * 64, "servers": [{"action": action} for action in actions], "downtime_seconds": seconds}


def lines(**hosts: dict[str, Any]) -> list[str]:
    return plan_summary_lines(result_document("plan", hosts))


def test_plan_ends_with_counts_downtime_and_hash() -> None:
    first, last = lines(a=host("1", "keep", "restart", seconds=2.5), b=host("2", "start", "stop", seconds=3.0))
    assert first == "plan  2 hosts: 1 to start, 1 to restart, 1 to stop, 1 to keep, 5.5 s of downtime"
    assert last.startswith("hash  ")
    digits = last.split()[1]
    assert len(digits) == 16
    assert result_document("plan", {"a": host("1"), "b": host("2")})["hash"].startswith(digits)


def test_plan_of_nothing_says_so() -> None:
    assert lines(a=host("1"))[0] == "plan  1 host: nothing to do"


def test_plan_with_a_failed_host_has_no_hash_and_names_it() -> None:
    failed = {f"gpu{number}": {"task": None, "error": "no route"} for number in range(7)}
    assert lines(a=host("1", "keep"), **failed)[1] == (
        "hash  none, as there is no plan for gpu0, gpu1, gpu2, gpu3, gpu4 and 2 more: fix that, or leave them out with "
        "--limit"
    )
