# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that run with an earlier launch config than the one on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Memory, Process
from ansible_collections.magi.llama.plugins.module_utils._health import observations
from ansible_collections.magi.llama.plugins.module_utils._health.outcome import Outcome
from ansible_collections.magi.llama.plugins.module_utils._health.pending import config_digests, restart_pending
from ansible_collections.magi.llama.plugins.module_utils._plan.differences import pending_warnings, with_action
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "supervisor/conf.d/a.conf"
    path.parent.mkdir(parents=True)
    path.write_text("[program:a]\n")
    return path


def pending(state: str, pid: int) -> list[str]:
    started = observations.started_configs(state)
    return restart_pending(started, {"a": pid}, config_digests(state, "supervisor", ["a", "b"]))


def test_config_written_after_the_start_is_pending(tmp_path: Path, config: Path) -> None:
    state = str(tmp_path)
    observations.note_started_configs(state, {"a": 5, "b": None}, config_digests(state, "supervisor", ["a", "b"]))
    # Becoming ready does not lose it.
    observations.update_observations(state, [Outcome("a", 8080, "Q4", 5, "ready", True, True, 1.0)], {"a": "r1"})
    assert pending(state, 5) == []
    config.write_text("[program:a]\numask=077\n")
    assert pending(state, 5) == ["a"]
    # Started again by its manager, perhaps with the new one.
    assert pending(state, 6) == []
    observations.note_started_configs(state, {"a": 6}, config_digests(state, "supervisor", ["a"]))
    assert pending(state, 6) == []
    config.unlink()
    assert pending(state, 6) == []
    assert config_digests(state, None, ["a"]) == {}


def test_pid_of_another_boot_is_another_process(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, ready = str(tmp_path), Outcome("a", 8080, "Q4", 5, "ready", True, True, 1.0)
    observations.note_started_configs(state, {"a": 5}, config_digests(state, "supervisor", ["a"]))
    observations.update_observations(state, [ready], {"a": "r1"})
    observations.note_speeds(state, {"a": 26.5, "gone": 1.0})
    assert observations.for_status(state) == {"a": {"pid": 5, "tokens_per_second": 26.5}}
    observations.note_memory(state, {"a": {"planned_bytes": 1, "loaded_bytes": 1, "rows": []}})
    config.write_text("[program:a]\numask=077\n")
    monkeypatch.setattr(observations, "boot_id", lambda: "another")
    assert pending(state, 5) == []
    assert observations.for_status(state) == {"a": {}}
    assert observations.ready_revisions(state) == {"a": "r1"}
    # Ready for long when someone looks: how long it took is unknown, and not what the process before took.
    [seen] = observations.update_observations(state, [replace(ready, seconds_to_ready=None)], {})
    assert (seen["became_ready"], seen["seconds_to_ready"]) == (True, None)
    assert observations.for_status(state) == {"a": {"pid": 5}}


def test_hidden_boot_is_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> str:
        raise FileNotFoundError

    observations.update_observations(str(tmp_path), [Outcome("a", 8080, "Q4", 5, "ready", True, True, 1.0)], {})
    monkeypatch.setattr(observations, "boot_id", hidden)
    assert observations.for_status(str(tmp_path)) == {"a": {"pid": 5}}


@pytest.mark.parametrize(
    ("restarts", "action", "reason"),
    [(True, "restart", "its launch config changed"), (False, "keep", "restart pending: its launch config changed")],
)
def test_setting_decides_about_a_pending_restart(restarts: bool, action: str, reason: str) -> None:
    env = {"MAGI_LLAMA_RUNTIME": "1", "MAGI_LLAMA_MODEL": "2", "MAGI_LLAMA_REVISION": "3"}
    server = {"name": "a", "argv": ["/llama-server"], "env": env, "revision": "3"}
    running = {"a": Process(5, 1, "a", ("/llama-server",), env, 0, 0.0, 0.0, 0)}
    host = Host(Memory(1, 1), running=running, pending={"a": "its launch config changed"}, restarts_pending=restarts)
    planned = with_action(server, None, host)
    assert (planned["action"], planned["reason"]) == (action, reason)
    warnings = pending_warnings({"servers": [planned]})
    assert [warning.startswith("a: restart pending, ") for warning in warnings] == ([] if restarts else [True])
