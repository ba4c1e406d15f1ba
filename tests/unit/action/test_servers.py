# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""server_state and wait_for_health: bulk calls, sequential calls, slices, and displayed lines."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN

STATE = {"state_dir": "/s"}


def health(
    name: str, state: str = "ready", *, settled: bool = True, became: bool = True, **more: Any
) -> dict[str, Any]:
    ready = state == "ready"
    return {
        **{
            "name": name,
            "port": 8080,
            "pid": 7,
            "tier": "Q4",
            "state": state,
            "is_ready": ready,
            "is_settled": settled,
            "token_seconds": None,
            "tokens_per_second": None,
        },
        **{"became_ready": ready and became, "seconds_to_ready": 1.25 if ready else None, "restarts": 0},
        **{"detail": None if ready else "exit code 1", "fix": None, "log_tail": []},
        **more,
    }


def answer(*servers: dict[str, Any]) -> dict[str, Any]:
    failed = [server["name"] for server in servers if not server["is_ready"]]
    open_ = [server["name"] for server in servers if server["state"] == "unprotected"]
    complete = all(server["is_settled"] for server in servers)
    ready = len(servers) - len(failed)
    return {
        "changed": False,
        "servers": list(servers),
        "failed_servers": failed,
        "ready": ready,
        "complete": complete,
        "unprotected_servers": open_,
    }


def changed(*servers: tuple[str, str]) -> dict[str, Any]:
    entries = [{"name": name, "action": action, "signal": None} for name, action in servers]
    return {
        "changed": bool(servers),
        "servers": entries,
        "msg": "\n".join(f"{name}: {action}" for name, action in servers),
    }


def info(*names: str, concurrent: bool) -> dict[str, Any]:
    running = {"state": "ready", "is_ready": True, "uptime_seconds": 1, "rss_bytes": 1, "restarts": 0}
    servers = [
        {"name": name, "model_id": name, "display_name": None, "port": 8080, "pid": 7, "tier": None, **running}
        for name in names
    ]
    counts = {"total_servers": len(servers), "ready_servers": len(servers)}
    return {
        "start": {"concurrent": concurrent, "max_startup_time": 120, "readiness_check_interval": 2},
        "status": {"collection_version": "1.0.0", "schema_version": 1, **counts, "servers": servers},
        "drift": {},
    }


# --- wait_for_health --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "fails"), [("failed", False), ("unprotected", True)])
def test_degraded_is_allowed_but_not_unprotected(run_action, state, fails):
    run = run_action("wait_for_health", {**STATE, "allow_degraded": True}, answers=[answer(health("a", state))])
    assert run.result["failed"] is fails


def test_wait_shows_settled_servers_and_polls_the_rest(run_action):
    answers = [
        answer(health("a"), health("b", "loading", settled=False, detail="loading", restarts=2)),
        answer(health("b", "loading", settled=False, restarts=2)),
        answer(health("b", restarts=2)),
    ]
    run = run_action("wait_for_health", STATE, answers=answers)
    assert [call[1].get("servers") for call in run.calls] == [None, ["b"], ["b"]]
    assert [line.split() for line in run.lines] == [
        ["a", "port", "8080", "pid", "7", "Q4", "ready", "in", "1.2", "s"],
        ["b", "port", "8080", "pid", "7", "Q4", "ready", "in", "1.2", "s"],
    ]
    # More restarts than at the first call are a crash.
    assert run.calls[2][1][FILLED_IN]["baseline"] == {"a": 0, "b": 2}
    assert (run.result["ready"], run.result["complete"]) == (2, True) and not run.result.get("failed")


def test_wait_ends_after_timeout_whatever_the_host_reports(run_action, monkeypatch):
    passed = iter(range(0, 10**6, 60))
    monkeypatch.setattr(time, "monotonic", lambda: next(passed))
    with pytest.raises(AnsibleError, match=r"reports after 130 s that a will still be waited for"):
        run_action(
            "wait_for_health", {**STATE, "timeout": 10}, answers=[answer(health("a", "loading", settled=False))] * 9
        )


def test_wait_server_already_ready_is_not_shown(run_action):
    assert run_action("wait_for_health", STATE, answers=[answer(health("a", became=False))]).lines == []


@pytest.mark.parametrize(("degraded", "failed"), [(False, True), (True, False)])
def test_wait_failed_server_fails_the_task_unless_degraded(run_action, degraded, failed):
    end = health("a", "failed", fix="lower ctx_size")
    run = run_action("wait_for_health", {**STATE, "allow_degraded": degraded}, answers=[answer(end)])
    assert run.result["failed"] is failed
    assert run.lines == ["      a  port 8080  FAILED: exit code 1; lower ctx_size"]
    # The action, not the slice, decides about failure.
    assert run.calls[0][1]["allow_degraded"] is True


def test_wait_ends_when_host_is_lost(run_action):
    lost = {"unreachable": True, "msg": "no route"}
    run = run_action("wait_for_health", STATE, answers=[answer(health("a", "loading", settled=False)), lost])
    assert run.result["unreachable"] and len(run.calls) == 2


def test_wait_check_mode_is_one_call(run_action):
    run = run_action("wait_for_health", STATE, answers=[answer(health("a", "loading", settled=False))], check=True)
    assert len(run.calls) == 1


def test_wait_several_hosts_are_named_in_each_line(run_action):
    run = run_action("wait_for_health", STATE, answers=[answer(health("a"))], ansible_play_hosts_all=["h", "i"])
    assert [line.split("|")[0] for line in run.lines] == ["h "]


# --- server_state -----------------------------------------------------------------------------------------------------


def test_state_concurrent_start_is_one_call(run_action):
    run = run_action(
        "server_state",
        {**STATE, "actions": {"a": "start", "b": "stop"}, "concurrent": True},
        answers=[changed(("a", "start"), ("b", "stop"))],
    )
    [(name, sent)] = run.calls
    assert (name, sent["actions"]) == ("server_state", {"a": "start", "b": "stop"})
    assert "run_id" in sent[FILLED_IN]
    # The result of a handler is not displayed, so the stop is shown here.
    assert run.lines == ["      b: stop"]


def test_state_one_by_one_waits_for_each_server_before_the_next(run_action):
    run = run_action(
        "server_state",
        {**STATE, "actions": {"a": "start", "b": "restart", "c": "stop"}, "concurrent": False, "timeout": 9},
        answers=[
            changed(("c", "stop")),
            changed(("a", "start")),
            answer(health("a")),
            changed(("b", "restart")),
            answer(health("b")),
        ],
    )
    assert [name for name, _sent in run.calls] == [
        "server_state", "server_state", "wait_for_health", "server_state", "wait_for_health",
    ]  # fmt: skip
    assert [sent.get("actions") or sent["servers"] for _name, sent in run.calls] == [
        {"c": "stop"}, {"a": "start"}, ["a"], {"b": "restart"}, ["b"],
    ]  # fmt: skip
    assert run.calls[2][1]["timeout"] == 9
    assert run.result["changed"] and [server["name"] for server in run.result["servers"]] == ["c", "a", "b"]


@pytest.mark.parametrize(("concurrent", "calls"), [(True, 2), (False, 3)])
def test_state_reads_start_settings_from_host(run_action, concurrent, calls):
    answers = [info("a", concurrent=concurrent), changed(("a", "start"))]
    answers += [] if concurrent else [answer(health("a"))]
    run = run_action("server_state", {**STATE, "state": "started"}, answers=answers)
    assert run.calls[0][0] == "server_info" and len(run.calls) == calls


def test_state_one_by_one_stops_at_first_failure_and_keeps_changes(run_action):
    run = run_action(
        "server_state",
        {**STATE, "actions": {"a": "stop", "b": "start", "c": "start"}, "concurrent": False},
        answers=[changed(("a", "stop")), {"failed": True, "msg": "no"}],
    )
    assert (run.result["failed"], run.result["changed"], run.result["msg"]) == (True, True, "no")


def test_state_unknown_server_returns_error_of_host(run_action):
    refused = {"failed": True, "msg": "No server x is deployed here"}
    run = run_action("server_state", {**STATE, "state": "restarted", "servers": ["x"]}, answers=[refused])
    assert run.result["msg"] == refused["msg"] and [name for name, _sent in run.calls] == ["server_info"]


def test_warnings_of_modules_are_shown_where_ansible_hides_them(run_action):
    """Ansible shows none of a task that changed nothing with display_ok_hosts=false."""
    answer = {"changed": False, "servers": [], "msg": "", "warnings": ["keys may be read by others"]}
    run = run_action("server_state", {"state_dir": "/s", "state": "stopped"}, answers=[answer])
    assert run.lines == ["      warning  keys may be read by others"]
    assert "warnings" not in run.result
