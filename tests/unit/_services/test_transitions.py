# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import stat
from dataclasses import asdict

import pytest
from ansible_collections.magi.llama.plugins.action.server_state import stop_lines
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._health import observations
from ansible_collections.magi.llama.plugins.module_utils._health.outcome import Outcome
from ansible_collections.magi.llama.plugins.module_utils._services import transitions
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceStatus, Stopped


class FakeManager:
    """Stores the states of servers and its calls, in order."""

    def __init__(self, states, errors=()):
        self.states, self.errors, self.calls, self.pids = dict(states), dict(errors), [], iter(range(100, 200))

    def status(self, names):
        return {name: self.states.get(name, ServiceStatus(name, "absent")) for name in names}

    def reload(self, names):
        self.calls.append(("reload", list(names)))

    def start(self, names, on_started):
        self.calls.append(("start", list(names)))
        for name in names:
            if name not in self.errors:
                self.states[name] = ServiceStatus(name, "running", next(self.pids))
            on_started(name)
        return self.errors

    def stop(self, names, timeout):
        self.calls.append(("stop", list(names), timeout))
        stopped = {name: Stopped(name, self.states[name].pid, "SIGTERM", 0.2) for name in names}
        for name in names:
            self.states[name] = ServiceStatus(name, "stopped")
        return stopped

    def forget(self, names):
        self.calls.append(("forget", list(names)))

    def shutdown_if_idle(self):
        self.calls.append(("shutdown_if_idle",))
        return True

    def log_tail(self, name, lines):
        return []


class FakePace:
    """Records the servers that it was called for, and whether each was the last."""

    def __init__(self, calls):
        self.calls = calls

    def on_started(self, server, last):
        self.calls.append(("on_started", server["name"], last))


RECORD = [{"name": name, "stop_timeout": timeout} for name, timeout in (("a", 30), ("b", 5), ("c", 40))]


def process(name, pid, revision):
    return Process(pid, 1, name, (), {"MAGI_LLAMA_REVISION": revision}, 0, 0.0, 0.0, 0)


def running(name, pid):
    return ServiceStatus(name, "running", pid)


def apply(manager, actions, strays=(), ended=None):
    return transitions.apply(
        actions,
        RECORD,
        manager,
        lambda statuses: list(strays),
        lambda found, timeout: ended or {},
        FakePace(manager.calls).on_started,
    )


def test_starts_except_the_last_are_paced():
    manager = FakeManager({})
    apply(manager, {"a": "start", "b": "start", "c": "start"})
    assert manager.calls[-4:] == [
        ("start", ["a", "b", "c"]),
        *[("on_started", name, name == "c") for name in "abc"],
    ]


def test_stops_run_together_before_starts():
    manager = FakeManager({"a": running("a", 1), "b": running("b", 2), "old": running("old", 3)})
    results = apply(manager, {"a": "restart", "b": "stop", "c": "start", "old": "stop"})
    assert manager.calls == [
        ("stop", ["a", "b", "old"], 40.0),
        ("forget", ["old"]),
        ("reload", ["a", "b", "c"]),
        ("start", ["a", "c"]),
        ("on_started", "a", False),
        ("on_started", "c", True),
    ]
    assert [(r.name, r.action, r.pid_before, r.pid_after, r.signal, r.seconds) for r in results] == [
        ("a", "restart", 1, 100, "SIGTERM", 0.2),
        ("b", "stop", 2, None, "SIGTERM", 0.2),
        ("c", "start", None, 101, None, None),
        ("old", "stop", 3, None, "SIGTERM", 0.2),
    ]


def test_start_keeps_running_server_but_not_one_waiting_for_retry():
    manager = FakeManager({"a": running("a", 1), "b": ServiceStatus("b", "restarting")})
    apply(manager, {"a": "start", "b": "start"})
    assert manager.calls[0][:2] == ("stop", ["b"])


def test_start_of_server_revived_with_old_config_restarts_it():
    record = [{"name": "a", "revision": "new"}, {"name": "b", "revision": "same"}, {"name": "c", "revision": "x"}]
    alive = {name: process(name, 1, revision) for name, revision in (("a", "old"), ("b", "same"))}
    old = transitions.outdated(record, alive)
    assert old == {"a"}
    statuses = {"a": running("a", 1), "b": running("b", 2), "c": ServiceStatus("c", "stopped")}
    actions = dict.fromkeys("abc", "start")
    assert transitions.needed(actions, statuses, [], record, old) == {"a": "restart", "c": "start"}
    assert transitions.needed({"a": "stop"}, statuses, [], record, old) == {"a": "stop"}


def test_stop_ends_server_unknown_to_new_manager():
    statuses = {"a": ServiceStatus("a", "stopped"), "b": ServiceStatus("b", "stopped")}
    assert transitions.actions_for("stopped", statuses, {"b"}) == {"b": "stop"}


def test_manager_without_servers_is_shut_down():
    manager = FakeManager({"a": running("a", 1)})
    apply(manager, {"a": "stop"})
    assert manager.calls[-1] == ("shutdown_if_idle",)


def test_stray_is_ended_and_reported():
    stray = Process(9, 1, "a", (), {}, 0, 0.0, 0.0, 0)
    [result] = apply(FakeManager({}), {"a": "start"}, [stray], {9: Stopped("a", 9, "SIGKILL", 30.1)})
    assert (result.pid_before, result.signal, result.pid_after) == (9, "SIGKILL", 100)


def test_start_failure_is_reported():
    [result] = apply(FakeManager({}, {"a": "no such program"}), {"a": "start"})
    assert (result.error, result.pid_after) == ("no such program", None)
    assert transitions.result_lines([result]) == ["a: no such program"]


STATUSES = {
    "a": running("a", 1),
    "b": ServiceStatus("b", "failed"),
    "c": ServiceStatus("c", "restarting"),
    "d": ServiceStatus("d", "stopped"),
}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("started", {"b": "start", "c": "start", "d": "start"}),
        ("stopped", {"a": "stop", "c": "stop"}),
        ("restarted", dict.fromkeys("abcd", "restart")),
    ],
)
def test_state_yields_actions(state, expected):
    assert transitions.actions_for(state, STATUSES) == expected


@pytest.mark.parametrize(
    ("actions", "strays", "expected"),
    [
        ({"a": "start", "b": "start", "c": "start", "d": "start"}, [], "bcd"),
        (dict.fromkeys("abcd", "stop"), [], "ac"),
        (dict.fromkeys("abcd", "stop"), ["d"], "acd"),
        (dict.fromkeys("abcd", "restart"), [], "abcd"),
    ],
)
def test_actions_already_satisfied_are_skipped(actions, strays, expected):
    record = [{"name": name} for name in "abcd"]
    assert "".join(transitions.needed(actions, STATUSES, strays, record)) == expected


def test_server_not_in_record_is_forgotten_once():
    statuses = {"b": ServiceStatus("b", "failed"), "x": ServiceStatus("x", "absent")}
    assert transitions.needed({"b": "stop", "x": "stop"}, statuses, [], []) == {"b": "stop"}


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"a": "kill"}, "actions: a: 'kill' is not one of start, restart, stop"),
        ({"x": "start"}, "actions: x is not deployed here and cannot start: run site.yml"),
    ],
)
def test_actions_invalid_are_refused(actions, message):
    with pytest.raises(transitions.ActionError, match=message):
        transitions.check_actions(actions, RECORD)
    assert transitions.check_actions({"a": "start", "x": "stop"}, RECORD) == {"a": "start", "x": "stop"}


def test_result_lines_name_signals():
    results = [
        transitions.Result("a", "restart", 1, 2, "SIGTERM", 0.2),
        transitions.Result("b", "stop", 3, None, "SIGKILL", 30.04, stuck=True),
        transitions.Result("c", "start", None, 4, None, None),
    ]
    assert transitions.result_lines(results) == [
        "a: restarted, pid 1 ended by SIGTERM in 0.2 s, pid 2",
        "b: stopped, pid 3 ended by SIGKILL in 30.0 s (stuck stop)",
        "c: started, pid 4",
    ]


def ready(pid, seconds):
    return Outcome("a", 8080, "Q4", pid, "ready", True, True, seconds)


def test_seconds_to_ready_are_the_first_observed(tmp_path):
    assert observations.update_observations(str(tmp_path), [ready(5, 1.2)], {"a": "r1"})[0]["became_ready"]
    [entry] = observations.update_observations(str(tmp_path), [ready(5, 77.0)], {"a": "r1"})
    assert (entry["became_ready"], entry["seconds_to_ready"]) == (False, 1.2)
    [entry] = observations.update_observations(str(tmp_path), [ready(6, 2.0)], {"a": "r2"})
    assert (entry["became_ready"], entry["seconds_to_ready"]) == (True, 2.0)
    assert stat.S_IMODE(os.stat(tmp_path / "observed.json").st_mode) == 0o644


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": {}}', '{"schema_version": 2}', '{"schema_version": 2, "servers": {"a": {"pid": "5"}}}']
)
def test_observations_damaged_are_ignored(tmp_path, text):
    (tmp_path / "observed.json").write_text(text)
    assert observations.update_observations(str(tmp_path), [ready(5, 1.2)], {"a": "r1"})[0]["seconds_to_ready"] == 1.2


def test_observations_in_check_mode_are_not_written(tmp_path):
    observations.update_observations(str(tmp_path), [ready(5, 1.2)], {"a": "r1"}, write=False)
    assert list(tmp_path.iterdir()) == []


def test_known_process_gets_revision_it_was_ready_with(tmp_path):
    observations.update_observations(str(tmp_path), [ready(5, 1.2)], {})
    assert observations.ready_revisions(str(tmp_path)) == {"a": None}
    observations.update_observations(str(tmp_path), [ready(5, 1.2)], {"a": "r1"})
    assert observations.ready_revisions(str(tmp_path)) == {"a": "r1"}
    died = Outcome("a", 8080, "Q4", None, "failed", False, True, None)
    observations.update_observations(str(tmp_path), [died], {})
    assert observations.ready_revisions(str(tmp_path)) == {"a": "r1"}


def test_stuck_stop_is_known_until_the_next_stop(tmp_path):
    state = str(tmp_path)
    stuck = transitions.Result("a", "restart", 4, 5, "second SIGTERM", 10.02, stuck=True)
    observations.note_stops(state, {"a": stuck})
    # The new process, which is ready, does not clear it.
    observations.update_observations(state, [ready(5, 1.2)], {"a": "r1"})
    assert observations.for_status(state)["a"]["stuck_stop"] == {"signal": "second SIGTERM", "seconds": 10.02}
    observations.note_stops(state, {"a": transitions.Result("a", "stop", 5, None, "SIGTERM", 0.1)})
    assert "stuck_stop" not in observations.for_status(state)["a"]


def test_stop_lines_report_stops_and_kills():
    results = [
        transitions.Result("a", "start", None, 1, None, None),
        transitions.Result("b", "restart", 2, 3, "SIGTERM", 0.1),
        transitions.Result("c", "restart", 4, 5, "second SIGTERM", 10.0, stuck=True),
        transitions.Result("d", "stop", 6, None, "SIGTERM", 0.2),
    ]
    answer = {"servers": [asdict(result) for result in results], "msg": "\n".join(transitions.result_lines(results))}
    assert stop_lines(answer) == [
        "c: restarted, pid 4 ended by second SIGTERM in 10.0 s (stuck stop), pid 5",
        "d: stopped, pid 6 ended by SIGTERM in 0.2 s",
    ]
    assert stop_lines({"failed": True, "msg": "no"}) == []


def test_ready_server_without_token_is_not_good(tmp_path):
    state = str(tmp_path)
    observations.update_observations(state, [ready(5, 1.2)], {"a": "r1"})
    observations.record_verdicts(state, {"a": "r1"}, failed=["a"], refused=["a"])
    assert (observations.ready_revisions(state), observations.refused_revisions(state)) == ({"a": None}, {"a": "r1"})
    # Neither a new process of it, nor another revision that was ready in between, makes it good.
    observations.update_observations(state, [ready(6, 1.2)], {"a": "r1"})
    assert observations.ready_revisions(state) == {"a": None}
    observations.update_observations(state, [ready(7, 1.2)], {"a": "r2"})
    assert observations.ready_revisions(state) == {"a": "r2"}
    observations.update_observations(state, [ready(8, 1.2)], {"a": "r1"})
    assert observations.ready_revisions(state) == {"a": None}
    # The process that answers now has another revision than the one that did not answer.
    observations.record_verdicts(state, {"a": "r2"}, answered=["a"])
    assert observations.refused_revisions(state) == {"a": "r1"}
    observations.record_verdicts(state, {"a": "r1"}, answered=["a"])
    assert (observations.ready_revisions(state), observations.refused_revisions(state)) == ({"a": "r1"}, {})


def test_server_not_probed_is_good_when_ready(tmp_path):
    state = str(tmp_path)
    observations.update_observations(state, [ready(5, 1.2)], {"a": "r1"})
    observations.record_verdicts(state, {"a": "r1", "never seen": "r1"}, failed=["a", "never seen"])
    assert (observations.ready_revisions(state), observations.refused_revisions(state)) == ({"a": None}, {})
    observations.update_observations(state, [ready(5, 1.2)], {"a": "r1"})
    assert observations.ready_revisions(state) == {"a": "r1"}


def test_seconds_observed_during_starts_belong_to_their_processes(tmp_path):
    state = str(tmp_path)
    observations.note_seconds(state, {"a": (5, 0.12)})
    [entry] = observations.update_observations(state, [ready(5, 4.4)], {"a": "r1"})
    assert (entry["became_ready"], entry["seconds_to_ready"]) == (True, 0.12)
    # Another process of the server has its own time.
    observations.note_seconds(state, {"a": (6, 0.13)})
    assert observations.update_observations(state, [ready(7, 2.2)], {"a": "r1"})[0]["seconds_to_ready"] == 2.2
    assert observations.update_observations(state, [ready(7, 9.9)], {"a": "r1"})[0]["seconds_to_ready"] == 2.2
