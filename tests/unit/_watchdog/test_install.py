# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchdog's units, where it is refused, and what a status shows of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all
from ansible_collections.magi.llama.plugins.module_utils._output.report import status_lines
from ansible_collections.magi.llama.plugins.module_utils._services.host_facts import HostError, host_facts
from ansible_collections.magi.llama.plugins.module_utils._watchdog.install import (
    Settings,
    WatchdogError,
    apply,
    require_ours,
    units,
)
from ansible_collections.magi.llama.plugins.modules import watchdog

SETTINGS = Settings("restart", 60, 2.5, 3)


def test_units_run_the_program_of_their_state_directory(tmp_path: Path) -> None:
    timer, service = units("/srv/my state", SETTINGS, "/usr/bin/python3", str(tmp_path))
    assert Path(timer.path).name == "magi-llama.watchdog.timer" and b"OnUnitInactiveSec=60\n" in timer.content
    words = " ".join(service.content.decode().partition("ExecStart=")[2].replace("\\\n", "").split())
    assert words.startswith('/usr/bin/python3 -I "/srv/my state/watchdog.py" "/srv/my state" restart 2.5 3')
    # systemd bounds no oneshot by itself, and the timer waits for the last one.
    assert b"\nTimeoutStartSec=1h\n" in service.content


def test_unit_of_another_deployment_is_not_replaced(tmp_path: Path) -> None:
    require_ours("/srv/a", str(tmp_path))
    write_all(units("/srv/a", SETTINGS, "/usr/bin/python3", str(tmp_path)))
    require_ours("/srv/a", str(tmp_path))
    for other in ("/srv/b", "/srv/a/b", "/srv"):
        with pytest.raises(WatchdogError, match="a host has one watchdog"):
            require_ours(other, str(tmp_path))


def test_timer_runs_with_the_new_settings_or_is_gone(tmp_path: Path) -> None:
    calls: list[str] = []

    def run(command: Sequence[str]) -> Completed:
        calls.append(" ".join(command[1:]))
        return Completed(0, "", "")

    files = units("/srv/a", SETTINGS, "/usr/bin/python3", str(tmp_path))
    apply(files, [], run)
    timer = "magi-llama.watchdog.timer"
    assert calls == ["daemon-reload", f"enable --quiet {timer}", f"restart {timer}"]
    calls.clear()
    apply([], [file.path for file in files], run)
    assert calls == [f"disable --now --quiet {timer}", "daemon-reload"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WatchdogError, match="systemctl daemon-reload failed: no bus"):
        apply(files, [], lambda _command: Completed(1, "", "no bus\n"))


ON = "UnitFileState=enabled\nActiveState=active\nNeedDaemonReload=no\n"
SERVICE = "\nUnitFileState=static\nActiveState=inactive\nNeedDaemonReload=no\n"


@pytest.mark.parametrize(
    ("shown", "runs"),
    [
        (ON + SERVICE, True),
        (ON.replace("enabled", "disabled") + SERVICE, False),
        (ON.replace("active", "inactive") + SERVICE, False),
        (ON + SERVICE.replace("Reload=no", "Reload=yes"), False),
        ("", False),
    ],
    ids=["on", "disabled", "stopped", "not loaded again", "unknown"],
)
@pytest.mark.parametrize("check", [False, True])
def test_timer_that_is_off_is_switched_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    shown: str,
    runs: bool,
    check: bool,
) -> None:
    """Its files are as they are to be: a run was killed after it had written them, or someone has disabled it."""
    calls: list[str] = []

    def run(command: Sequence[str]) -> Completed:
        calls.append(command[1])
        return Completed(0, shown if command[1] == "show" else "", "")

    files = units("/srv/a", SETTINGS, "/usr/bin/python3", str(tmp_path))
    write_all(files)
    monkeypatch.setattr(watchdog, "units", lambda *_given: files)
    monkeypatch.setattr(watchdog, "run_in_english", run)
    monkeypatch.setattr(watchdog, "renew", lambda *_given: None)
    given = {"state_dir": "/srv/a", "mode": "restart", "_ansible_check_mode": check, FILLED_IN: {}}
    with patch_module_args(given), pytest.raises(SystemExit):
        watchdog.main()
    answer = json.loads(capsys.readouterr().out)
    assert (answer["changed"], answer["written"], bool(answer["diff"])) == (not runs, [], not runs)
    assert calls == ["show", *([] if runs or check else ["daemon-reload", "enable", "restart"])]


def test_diff_is_from_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = units("/srv/a", SETTINGS, "/usr/bin/python3", str(tmp_path))
    monkeypatch.setattr(watchdog, "units", lambda *_given: files)
    monkeypatch.setattr(watchdog, "run_in_english", lambda _command: Completed(0, "", ""))
    monkeypatch.setattr(watchdog, "renew", lambda *_given: None)
    given = {"state_dir": "/srv/a", "mode": "restart", FILLED_IN: {}}
    with patch_module_args(given), pytest.raises(SystemExit):
        watchdog.main()
    shown = json.loads(capsys.readouterr().out)["diff"]
    assert [one["before"] for one in shown] == ["", ""]
    assert [one["after"].encode() for one in shown] == [file.content for file in files]


def test_manager_without_timers_is_refused_by_name(tmp_path: Path) -> None:
    given = {"state_dir": str(tmp_path), "service_manager": "supervisor", "user": "root", "watchdog": "restart"}
    with pytest.raises(HostError, match=r"servers_watchdog is restart, and supervisor, .* to systemd or container"):
        host_facts(given, lambda _program: None)
    host_facts({**given, "watchdog": "off"}, lambda _program: None)


def test_status_names_what_hangs_and_what_was_restarted() -> None:
    found = {"state": "answers", "detail": None, "since": "S", "restarts": 0, "last_restart": None}
    server = {
        **{"name": "a", "port": 1, "pid": None, "tier": None, "state": "ready", "uptime_seconds": 0, "rss_bytes": 0},
        "restarts": 0,
    }

    def lines(**more: object) -> list[str]:
        status = {"ready_servers": 1, "total_servers": 1, "servers": [{**server, "watchdog": {**found, **more}}]}
        return status_lines(status)[3:]

    assert lines() == []
    assert lines(state="hung", detail="no answer") == ["a: watchdog: hung since S: no answer"]
    assert lines(last_restart="T", restarts=2) == ["a: watchdog: last restarted it at T, 2 restarts within an hour"]
    assert lines(last_restart="T") == ["a: watchdog: last restarted it at T"]
