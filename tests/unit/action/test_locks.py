# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""begin_run and run_lock: waiting for the holder of the lock, failing, and stealing the lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.plugin_utils import hold
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run

OTHER = {"id": "elsewhere/1/1", "text": "site.yml by ann on ops (pid 1, since 09:00)", "seconds_left": 800.0}
HOST = {
    **{"service_manager": "systemd", "service_manager_missing": False, "supervisord": None, "root": True},
    **{"user": "llama", "group": "llama", "user_exists": True, "user_is_ours": True, "sets_groups": True},
    **{
        "api_key_stamp": "",
        "stray_variables": [],
        "user_ids": [],
    },
}


def lock_answer(holder: dict[str, Any] | None) -> Callable[[str], dict[str, Any]]:
    """begin_run's answer has a fact besides."""
    return lambda module: {
        "changed": False,
        "holder": holder,
        **({"ansible_facts": {"llama_host": HOST}} if module == "begin_run" else {}),
    }


FREE, HELD = lock_answer(None), lock_answer(OTHER)
CALLS = [
    ("run_lock", {"state_dir": "~/llama"}),
    ("begin_run", {"state_dir": "~/llama", "user": "llama"}),
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds slept; time passes by sleeping only."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    return slept


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_lock_free_is_acquired_for_this_run(run_action, name, arguments):
    run = run_action(name, arguments, answers=[FREE])
    [(called, sent)] = run.calls
    assert called == name and run.result["holder"] is None and run.lines == []
    # The home of the host's user, not of the controller's.
    assert sent["state_dir"] == "~/llama"
    assert sent[FILLED_IN]["run"] == this_run("h")


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_lock_held_is_waited_for_and_reported_once(run_action, clock, name, arguments):
    run = run_action(name, {**arguments, "wait": 10}, answers=[HELD, HELD, HELD, FREE])
    assert run.lines == [f"      waiting for another run on this host: {OTHER['text']}"]
    assert clock == [hold.POLL_SECONDS] * 3 and not run.result.get("failed")


@pytest.mark.parametrize(("wait", "after"), [(0, "this host: "), (3, "this host after 3 s: ")])
def test_lock_held_for_longer_than_wait_is_refused(run_action, clock, wait, after):
    count = 1 if wait == 0 else 3
    run = run_action("run_lock", {"state_dir": "/s", "wait": wait}, answers=[HELD] * count)
    assert run.result["failed"] and sum(clock) == wait
    assert run.result["msg"].startswith(f"Another run is still changing {after}{OTHER['text']}. Nothing was changed")
    assert "expires in 800 s; -e servers_lock_take_over=true" in run.result["msg"]


def test_take_over_passes_holder_as_dead_without_waiting(run_action, clock):
    run = run_action("run_lock", {"state_dir": "/s", "take_over": True}, answers=[HELD, FREE])
    assert [sent[FILLED_IN].get("dead") for _name, sent in run.calls] == [None, OTHER["id"]]
    assert clock == []


def test_lock_of_ended_run_on_this_controller_is_acquired(run_action, clock, monkeypatch):
    monkeypatch.setattr(hold, "has_ended", lambda holder: True)
    run = run_action("begin_run", {"state_dir": "/s", "user": "llama"}, answers=[HELD, FREE])
    assert [sent[FILLED_IN].get("dead") for _name, sent in run.calls] == [None, OTHER["id"]]
    assert clock == []


def test_check_mode_does_not_wait_for_lock(run_action, clock):
    run = run_action("begin_run", {"state_dir": "/s", "user": "llama"}, answers=[HELD], check=True)
    assert run.result["holder"] == OTHER and clock == []


@pytest.mark.parametrize(("name", "arguments"), CALLS)
@pytest.mark.parametrize("take_over", [False, True])
def test_second_name_of_one_machine_is_refused_at_once(run_action, clock, name, arguments, take_over):
    held = lock_answer({**OTHER, "id": this_run("twin")["id"]})
    run = run_action(name, {**arguments, "wait": 300, "take_over": take_over}, answers=[held])
    assert run.result["failed"] and clock == []
    assert run.result["msg"].startswith("h and twin are one machine with one state directory")
