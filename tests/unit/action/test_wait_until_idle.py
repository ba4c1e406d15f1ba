# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting until servers are idle: short module calls, a line for each server, and no failure."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN

ARGUMENTS = {"state_dir": "/s", "servers": ["a", "b"], "timeout": 30}


def server(name: str, requests: int = 0, *, settled: bool = True) -> dict[str, Any]:
    return {
        **{"name": name, "idle": not requests, "is_settled": settled, "seconds": 2.5},
        **{"requests": requests, "detail": None},
    }


def answer(*servers: dict[str, Any]) -> dict[str, Any]:
    return {"changed": False, "complete": all(one["is_settled"] for one in servers), "servers": list(servers)}


def test_each_server_is_shown_once_and_the_rest_is_waited_for(run_action: Any) -> None:
    answers = [answer(server("a"), server("b", 2, settled=False)), answer(server("b", 2))]
    run = run_action("wait_until_idle", ARGUMENTS, answers=answers)
    assert [call[1]["servers"] for call in run.calls] == [["a", "b"], ["b"]]
    assert run.lines == ["      a  idle after 2.5 s", "      b  2 requests are not over after 2.5 s"]
    assert (run.result["complete"], run.result["changed"], run.result.get("failed")) == (True, False, None)
    assert [(one["name"], one["idle"], one["requests"]) for one in run.result["servers"]] == [
        ("a", True, 0),
        ("b", False, 2),
    ]
    assert run.result["msg"] == "1 of 2 servers are idle\nb: 2 requests are not over after 2.5 s"
    assert run.calls[1][1][FILLED_IN].keys() == {"run_id", "slice", "elapsed"}


def test_no_servers_are_no_call(run_action: Any) -> None:
    run = run_action("wait_until_idle", {**ARGUMENTS, "servers": []})
    assert (run.result["servers"], run.result["changed"], run.lines) == ([], False, [])


def test_lost_host_is_returned(run_action: Any) -> None:
    lost = {"unreachable": True, "msg": "no route"}
    assert run_action("wait_until_idle", ARGUMENTS, answers=[lost]).result["unreachable"]


def test_check_mode_is_one_call(run_action: Any) -> None:
    run = run_action("wait_until_idle", ARGUMENTS, answers=[answer(server("a"), server("b", 1))], check=True)
    assert len(run.calls) == 1
