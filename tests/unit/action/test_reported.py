# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The events of actions: each type of event with its data, and what happens where they cannot be written."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.plugin_utils import events, hold

STATE = {"state_dir": "/s"}
NOTHING = {"port": None, "seconds": None, "reason": None, "fix": None}


def outcome(name: str, *, ready: bool = True, became: bool = True, detail: str | None = None) -> dict[str, Any]:
    return {
        **{"name": name, "port": 8080, "pid": 7, "tier": "Q4", "state": "ready" if ready else "failed"},
        **{"is_ready": ready, "is_settled": True, "token_seconds": None, "tokens_per_second": None},
        **{"became_ready": ready and became, "seconds_to_ready": 1.25 if ready else None, "restarts": 0},
        **{"detail": detail, "fix": None if ready else "give it more memory", "log_tail": []},
    }


def waited(*servers: dict[str, Any]) -> dict[str, Any]:
    failed = [server["name"] for server in servers if not server["is_ready"]]
    counts = {"ready": len(servers) - len(failed), "complete": True, "failed_servers": failed}
    return {"changed": False, "servers": list(servers), **counts, "unprotected_servers": []}


def test_servers_that_were_waited_for_are_reported_once_each(run_action: Any, sink: Any) -> None:
    servers = (outcome("a"), outcome("b", ready=False, detail="exit \x1b[1m code 1"), outcome("c", became=False))
    run_action("wait_for_health", STATE, answers=[waited(*servers)])
    assert sink.of("server_ready") == [{**NOTHING, "server": "a", "port": 8080, "seconds": 1.25}]
    reason = {"reason": r"failed: exit \x1b[1m code 1", "fix": "give it more memory"}
    assert sink.of("server_failed") == [{**NOTHING, "server": "b", "port": 8080, **reason}]
    assert all(event["host"] == "h" and not event["check"] for event in sink.found())


def test_stopped_servers_are_reported_and_restarted_ones_are_not(run_action: Any, sink: Any) -> None:
    entries = [
        {"name": "a", "action": "stop", "seconds": 0.5},
        {"name": "b", "action": "restart", "seconds": 1.0},
        {"name": "c", "action": "stop", "stuck": True},
    ]
    answer = {"changed": True, "servers": entries, "msg": "a\nb\nc"}
    run_action("server_state", {**STATE, "state": "stopped"}, answers=[answer])
    assert sink.of("server_stopped") == [{**NOTHING, "server": "a", "seconds": 0.5}]


def test_nothing_is_stopped_in_check_mode(run_action: Any, sink: Any) -> None:
    answer = {"changed": True, "servers": [{"name": "a", "action": "stop"}], "msg": "a"}
    run_action("server_state", {**STATE, "state": "stopped"}, answers=[answer], check=True)
    assert sink.found() == []


def test_drained_are_servers_without_requests(run_action: Any, sink: Any) -> None:
    base = {"is_settled": True, "seconds": 2.5, "requests": 0, "detail": None}
    servers = [{"name": "a", "idle": True, **base}, {"name": "b", "idle": False, **base, "requests": 2}]
    answer = {"changed": False, "complete": True, "servers": servers}
    run_action("wait_until_idle", {**STATE, "servers": ["a", "b"], "timeout": 9}, answers=[answer])
    assert sink.of("drained") == [{"server": "a", "seconds": 2.5}]


def held_by(text: str) -> dict[str, Any]:
    return {"changed": False, "holder": {"id": f"{text[:3]}/7/1 h", "text": text, "seconds_left": 290.0}}


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "sleep", lambda seconds: now.append(now[-1] + seconds))
    monkeypatch.setattr(hold.time, "monotonic", lambda: now[-1])


@pytest.mark.usefixtures("no_sleep")
def test_lock_that_is_waited_for_is_reported_at_once_and_until_the_run_has_it(run_action: Any, sink: Any) -> None:
    free = {"changed": True, "holder": None}
    began = events.timestamp()
    run_action("run_lock", {**STATE, "wait": 60}, answers=[*[held_by("ann on c2")] * 7, free])
    found = sink.of("lock_waited")
    assert [(one["seconds"], one["has_lock"]) for one in found] == [(0.0, False), (10.0, False), (14.0, True)]
    assert {one["holder"] for one in found} == {"ann on c2"}
    # When the waiting began, which is also when the first of them was sent.
    assert len({one["since"] for one in found}) == 1
    first = next(event for event in sink.found() if event["type"] == "lock_waited")
    # Times that are written alike sort as text.
    assert began <= first["data"]["since"] <= first["at"]
    assert sink.of("line") == [{"text": "      waiting for another run on this host: ann on c2"}]


@pytest.mark.usefixtures("no_sleep")
def test_lock_that_goes_to_a_third_run_is_reported_with_that_one(run_action: Any, sink: Any) -> None:
    free = {"changed": True, "holder": None}
    run_action("run_lock", {**STATE, "wait": 60}, answers=[held_by("ann on c2"), held_by("bob on c3"), free])
    found = [(one["holder"], one["has_lock"]) for one in sink.of("lock_waited")]
    assert found == [("ann on c2", False), ("bob on c3", False), ("bob on c3", True)]
    assert len(sink.of("line")) == 2


def test_registry_is_reported_short(run_action: Any, sink: Any) -> None:
    model = {"id": "a", "kind": "model", "path": "/m/a.gguf", "architecture": "llama", "tier": "Q4"}
    fact = {
        **{"schema_version": 1, "collection_version": "0.1.0", "updated_at": "2026-11-27T00:00:00Z"},
        **{"scan_paths": ["/m"], "total": 1, "models": [model], "companions": []},
        **{"rejected": [{"path": "/m/b.gguf", "reason": "truncated"}]},
    }
    answer = {"changed": False, "complete": True, "progress": {}, "ansible_facts": {"llama_registry": fact}}
    run_action("gguf_registry", {"registry_path": "/r.json"}, answers=[answer])
    assert sink.of("registry") == [
        {"total": 1, "tiers": {"Q4": 1}, "rejected": fact["rejected"], "models": [{**model, "size_bytes": None}]}
    ]


def test_status_of_all_servers_is_reported_and_of_some_is_not(run_action: Any, sink: Any) -> None:
    status = {"schema_version": 1, "collection_version": "0.1.0", "total_servers": 0, "ready_servers": 0, "servers": []}
    start = {"concurrent": True, "max_startup_time": 120, "readiness_check_interval": 2}
    answer = {"changed": False, "status": status, "drift": {}, "start": start}
    run_action("server_info", STATE, answers=[answer])
    run_action("server_info", {**STATE, "servers": ["a"]}, answers=[answer])
    assert sink.of("status") == [{"status": status}]


def test_log_of_a_server_is_in_the_answer_of_a_status_and_not_in_its_event(run_action: Any, sink: Any) -> None:
    numbers = dict.fromkeys(("pid", "uptime_seconds", "rss_bytes"), 7)
    server = {**numbers, "name": "a", "model_id": "a", "display_name": "A", "port": 8080, "is_ready": True}
    server |= {"tier": "Q4", "state": "ready", "restarts": 0}
    counts = {"schema_version": 1, "collection_version": "0.1.0", "total_servers": 1, "ready_servers": 1}
    start = {"concurrent": True, "max_startup_time": 120, "readiness_check_interval": 2}
    status = {**counts, "servers": [{**server, "log": ["secret"]}]}
    answer = {"changed": False, "status": status, "drift": {}, "start": start}
    run = run_action("server_info", {**STATE, "log_of": ["a"]}, answers=[answer])
    assert run.result["status"]["servers"][0]["log"] == ["secret"]
    assert sink.of("status") == [{"status": {**counts, "servers": [server]}}]


def test_report_is_lines_and_warnings_also_where_a_document_is_printed(run_action: Any, sink: Any) -> None:
    printed = {"__llama_playbook": "status", "__llama_begun": {"output": "json"}}
    run = run_action("report", {"step": ["text"], "text": "a\nb\x07"}, **printed)
    assert (run.lines, sink.of("line")) == ([], [{"text": "a\nb\\x07"}])


def test_rollout_of_a_host_is_reported_at_its_end_and_all_hosts_at_the_end(run_action: Any, sink: Any) -> None:
    hosts = {"h": {"ansible_facts": {}}, "i": {"ansible_facts": {}}}
    of_play = {"ansible_play_hosts_all": ["h", "i"], "hostvars": hosts, "__llama_begun": {"started": time.time()}}
    for step in ("begin", "update"):
        run = run_action("rollout", {"step": step}, facts=hosts["h"]["ansible_facts"], **of_play)
        hosts["h"]["ansible_facts"] = run.result["ansible_facts"]
    assert sink.found() == []
    failed = {"step": "failed", "task": "Wait", "error": "no"}
    run = run_action("rollout", failed, facts=hosts["h"]["ansible_facts"], **of_play)
    hosts["h"]["ansible_facts"] = run.result["ansible_facts"]
    hosts["i"]["ansible_facts"] = run_action("rollout", {"step": "begin"}, **of_play).result["ansible_facts"]
    run_action("rollout", {"step": "summary"}, **of_play)
    own, everything = sink.of("rollout")
    assert {name: host["state"] for name, host in own["rollout"]["hosts"].items()} == {"h": "failed"}
    states = {name: host["state"] for name, host in everything["rollout"]["hosts"].items()}
    assert states == {"h": "failed", "i": "untouched"}
    assert [event.get("host") for event in sink.found() if event["type"] == "rollout"] == ["h", None]


def test_sink_that_fails_is_one_warning_and_left_alone_for_a_while(
    run_action: Any, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, warnings = [100.0], []
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Display, "warning", lambda _self, text, *_args, **_options: warnings.append(text))
    sink.failures = 2
    for seconds in (0.0, 1.0, events.PAUSE_SECONDS, events.PAUSE_SECONDS):
        now[0] += seconds
        run_action("report", {"step": ["text"], "text": "a"})
    # The second one is not tried, the third fails again.
    assert sink.failures == 0
    assert warnings == ["MAGI_EVENTS: memory is full. The run continues; some of its events are missing."]
    assert [event["seq"] for event in sink.found()] == [4]


def test_task_is_refused_where_the_sink_could_not_be_opened(run_action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events._Process, "error", "MAGI_EVENTS: no.")
    with pytest.raises(AnsibleActionFail, match=r"MAGI_EVENTS: no\. Nothing was changed\."):
        run_action("report", {"step": ["text"], "text": "a"})
