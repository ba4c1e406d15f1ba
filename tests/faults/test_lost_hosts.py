# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout whose host fails or becomes unreachable: the summary reports the host's actual state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.bed import PROJECT, Bed, Outcome

OTHER = ("-e", "profile=other")


def rollout(bed: Bed, tmp_path: Path, *arguments: str, code: int = 0, **env: str) -> tuple[Outcome, dict[str, Any]]:
    """Run a rollout to its end; returns the outcome and the host's part of the summary."""
    path = tmp_path / "rollout.json"
    path.unlink(missing_ok=True)
    run = bed.run("rollout", *arguments, "-e", f"output_file={path}", env=env, code=code)
    assert path.exists(), run.output
    host: dict[str, Any] = json.loads(path.read_text())["hosts"]["bed"]
    return run, host


def test_host_failed_before_handlers_runs_no_handler(bed: Bed, tmp_path: Path) -> None:
    """The plan has notified the handlers, and the rescue lets the host continue to the end of the play."""
    foreign = bed.state / "supervisor/conf.d/tiny-llama-q2_k.conf"
    foreign.write_text("[program:not-ours]\ncommand=/bin/true\n")
    pids = bed.pids()
    try:
        run, host = rollout(bed, tmp_path, *OTHER, code=2)
    finally:
        foreign.unlink()
    run.expect("1 failed", 'bed failed at the task "Write the launch configs"', "Nothing was changed")
    assert (host["state"], host["rollback"]) == ("failed", None)
    assert bed.pids() == pids
    bed.wait_ready()


@pytest.mark.parametrize(
    ("task", "offers"),
    [("Write the launch configs", False), ("Start, restart and stop the changed servers", True)],
)
def test_host_lost_during_one_task_is_not_updated(bed: Bed, tmp_path: Path, task: str, offers: bool) -> None:
    """Its old servers are healthy and answer, so nothing else shows it."""
    pids = bed.pids()
    plugins = str(PROJECT / "tests/support")
    lost = {
        "ANSIBLE_CONNECTION_PLUGINS": f"{plugins}/connections",
        "ANSIBLE_CALLBACK_PLUGINS": f"{plugins}/callbacks",
        "ANSIBLE_CALLBACKS_ENABLED": "at_task",
        "MAGI_NOW": str(tmp_path / "now"),
        "MAGI_LOST_AT": task,
    }
    # This restarts both servers and changes nothing else.
    change = ("-e", "servers_stop_timeout=4", "-e", "ansible_connection=flaky")
    run, host = rollout(bed, tmp_path, *change, code=2, **lost)
    assert bed.pids() == pids
    bed.run("site")
    run.expect("the cable is out", "The connection to the host was lost while", "1 failed")
    assert (host["state"], bool(host["rollback"])) == ("failed", offers)
