# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that change together take turns where they need each other."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._plan.turns import (
    has_touched,
    ready_models,
    wave_at,
    wave_turns,
)

IDLE: dict[str, Any] = {"drain": [], "actions": {}, "ready": [], "needs": [], "leaves": [], "away": {}}
NOTHING = {**IDLE, "begins": [], "later": []}


def waves(*given: dict[str, Any]) -> list[dict[str, Any]]:
    return list(given)


def wave(name: str, *needs: str) -> dict[str, Any]:
    return {
        **IDLE,
        "drain": [name],
        "actions": {name: "restart"},
        "ready": [name],
        "needs": list(needs),
        "leaves": [name],
    }


def drained(turns: dict[str, Any], host: str) -> list[list[str]]:
    return [wave_at(turns, host, step)["drain"] for step in range(len(turns["steps"]))]


def test_hosts_that_need_each_other_take_turns() -> None:
    turns = wave_turns({"one": waves(wave("a", "a")), "two": waves(wave("a", "a")), "three": waves(wave("b", "b"))})
    assert {host: drained(turns, host) for host in turns["waves"]} == {
        "one": [["a"], []],
        "two": [[], ["a"]],
        "three": [["b"], []],
    }


def test_hosts_that_need_nobody_change_at_the_same_time() -> None:
    turns = wave_turns({"one": waves(wave("a"), wave("b")), "two": waves(wave("a"), wave("b"))})
    assert drained(turns, "one") == drained(turns, "two") == [["a"], ["b"]]


def test_a_hosts_waves_stay_in_their_order() -> None:
    turns = wave_turns({"one": waves(wave("a", "a"), wave("b", "b")), "two": waves(wave("b", "b"), wave("a", "a"))})
    assert drained(turns, "one") == [["a"], ["b"]]
    assert drained(turns, "two") == [["b"], ["a"]]


def test_a_step_says_what_any_host_does_in_it() -> None:
    begin = {**IDLE, "actions": {"b": "start"}, "ready": ["b"]}
    end = {**IDLE, "drain": ["b"], "actions": {"b": "stop"}}
    turns = wave_turns({"one": waves(begin), "two": waves(begin, wave("a", "a"), end)})
    assert turns["steps"] == [
        {"drains": False, "needs": False, "readies": True},
        {"drains": True, "needs": True, "readies": True},
        {"drains": True, "needs": False, "readies": False},
    ]
    assert [has_touched(turns, host, step) for host in ("one", "two") for step in range(3)] == [
        *[False] * 3,
        *[False, True, True],
    ]


def brings(model: str, name: str | None = None) -> dict[str, Any]:
    name = name or model
    return {**IDLE, "actions": {name: "start"}, "ready": [name], "new": {name: model}}


def drops(*models: str, **more: Any) -> dict[str, Any]:
    stopped = {**IDLE, "drain": [*models], "actions": dict.fromkeys(models, "stop"), "leaves": [*models]}
    return {**stopped, "drops": [*models], **more}


def test_model_that_moves_is_served_at_its_new_place_first() -> None:
    """In the order of the inventory the host that drops it is first."""
    turns = wave_turns({"old": waves(drops("m")), "new": waves(brings("n"), brings("m"))})
    assert drained(turns, "old") == [[], [], ["m"]]
    # It stays where it is if the new place does not serve it.
    assert wave_at(turns, "old", 2)["needs"] == ["m"]
    # One that no host takes, and one that the host itself has again.
    turns = wave_turns({"old": waves(drops("m"), brings("m")), "new": waves(brings("n"))})
    assert (drained(turns, "old")[0], wave_at(turns, "old", 0)["needs"]) == (["m"], [])


def test_hosts_that_exchange_models_without_room_for_both_do_not_wait_for_ever() -> None:
    turns = wave_turns({"one": waves(drops("m"), brings("n")), "two": waves(drops("n"), brings("m"))})
    assert drained(turns, "one") == [["m"], [], [], []]
    assert drained(turns, "two") == [[], [], ["n"], []]
    assert [wave_at(turns, host, step)["needs"] for host, step in (("one", 0), ("two", 2))] == [[], ["n"]]


def test_a_host_with_something_else_has_nothing_to_do() -> None:
    turns = wave_turns({"one": [{"drain": 1}], "two": None})
    assert turns == {"steps": [], "waves": {"one": [], "two": []}}
    assert wave_at(turns, "one", 0) == wave_at(turns, "unknown", 0) == NOTHING


def test_what_a_later_step_starts_is_not_there_yet() -> None:
    first, second = ({**IDLE, "actions": {name: "start", "x": "restart"}, "ready": [name]} for name in "ab")
    turns = wave_turns({"one": waves(first, second)})
    found = [wave_at(turns, "one", step) for step in range(3)]
    assert [(wave["begins"], wave["later"]) for wave in found] == [(["a"], ["b"]), (["b"], []), ([], [])]


def test_a_host_does_not_drain_the_last_server_that_another_one_relies_on() -> None:
    stop = {**IDLE, "drain": ["a"], "actions": {"a": "stop"}, "leaves": ["a"]}
    turns = wave_turns({"one": waves(stop), "two": waves(wave("a", "a"))})
    assert (drained(turns, "one"), drained(turns, "two")) == ([["a"], []], [[], ["a"]])


def test_a_model_counts_as_ready_elsewhere_only_where_every_gateway_sees_it() -> None:
    answers = [
        {"exists": True, "ready": {"a": {"one": 1, "two": 1}, "b": {"two": 1}}},
        {"exists": True, "ready": {"a": {"one": 1, "two": 2}, "b": {}}},
        {"exists": False, "ready": {}},
        {"unreachable": True, "msg": "no route"},
    ]
    assert ready_models(answers, "one") == {"gateways": 2, "here": {"a": 1}, "elsewhere": ["a"]}
    assert ready_models(answers, "two") == {"gateways": 2, "here": {"a": 1, "b": 1}, "elsewhere": ["a"]}
    assert ready_models([], "one") == {"gateways": 0, "here": {}, "elsewhere": []}
