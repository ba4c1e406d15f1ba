# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents, gates and exit codes of playbooks on a host with servers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.bed import ALL, Bed, Outcome
from support.schemas import errors

STOPPED, OTHER = "tiny-llama-q4_k_m", "tiny-llama-q3_k_m"


def result(bed: Bed, tmp_path: Path, playbook: str, *arguments: str, code: int = 0) -> tuple[Outcome, dict[str, Any]]:
    """A run with exactly that exit code, and the document's part of its host."""
    path = tmp_path / "result.json"
    path.unlink(missing_ok=True)
    run = bed.run(playbook, *arguments, "-e", f"output_file={path}", code=code)
    assert run.code == code, run.output
    document = json.loads(path.read_text())
    assert errors("rollout" if playbook == "rollout" else "result", document) == []
    assert document["kind"] == playbook
    host: dict[str, Any] = document["hosts"]["bed"]
    return run, host


@pytest.mark.parametrize("playbook", ["status", "plan"])
def test_healthy_host_passes_gates(bed: Bed, tmp_path: Path, playbook: str) -> None:
    _run, host = result(bed, tmp_path, playbook, "-e", "fail_on=degraded,drift")
    assert errors(playbook, host) == []
    assert len(host["servers"]) == 2
    assert "error" not in host


def test_stopped_server_fails_gates(bed: Bed, tmp_path: Path) -> None:
    bed.run("stop", "-e", f"servers={STOPPED}")
    _run, host = result(bed, tmp_path, "status")
    assert (host["total_servers"], host["ready_servers"]) == (2, 1)
    for playbook, gate, says in [
        ("status", "degraded", f"degraded, 1 of 2 servers are not ready: {STOPPED} stopped"),
        ("status", "drift", f"drift, {STOPPED}: not running"),
        ("plan", "degraded", f"degraded, 1 of 2 servers are not ready: {STOPPED} stopped"),
        ("plan", "drift", f"drift, {STOPPED}: to start, not running"),
    ]:
        run, gated = result(bed, tmp_path, playbook, "-e", f"fail_on={gate}", code=2)
        run.expect(says)
        # The gate is not a part of what was found.
        assert "error" not in gated
    bed.run("start", *ALL)


def test_hung_server_is_degraded_and_no_drift(bed: Bed, tmp_path: Path) -> None:
    pid = bed.pids()[STOPPED]
    os.kill(pid, signal.SIGSTOP)
    try:
        result(bed, tmp_path, "status", "-e", "fail_on=drift")
        result(bed, tmp_path, "status", "-e", "fail_on=degraded", code=2)
        result(bed, tmp_path, "plan", "-e", "fail_on=drift")
        result(bed, tmp_path, "plan", "-e", "fail_on=degraded", code=2)
        # verify needs no gate.
        _run, host = result(bed, tmp_path, "verify", "-e", "verify_timeout=2", code=2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (host["total_servers"], host["answered_servers"], host["task"]) == (
        2,
        1,
        "Probe every server with a few tokens",
    )
    assert STOPPED in host["error"]
    bed.wait_ready()
    _run, host = result(bed, tmp_path, "verify")
    assert host["answered_servers"] == 2


def test_edited_and_removed_launch_configs_are_drift(bed: Bed, tmp_path: Path) -> None:
    configs = bed.state / "supervisor"
    edited, removed = (next(configs.glob(f"**/*{name}.conf")) for name in (STOPPED, OTHER))
    edited.write_text(edited.read_text() + "; by hand\n")
    removed.unlink()
    # The processes are as they were.
    for playbook, says in [
        ("status", ["was edited since it was deployed", "was removed since it was deployed"]),
        ("plan", [f"to write the launch config {edited}", f"to write the launch config {removed}"]),
    ]:
        run, _host = result(bed, tmp_path, playbook, "-e", "fail_on=drift", code=2)
        run.expect(*says)
        result(bed, tmp_path, playbook, "-e", "fail_on=degraded")
    pids = bed.pids()
    bed.run("site")
    assert bed.pids() == pids
    for playbook in ("status", "plan"):
        result(bed, tmp_path, playbook, "-e", "fail_on=drift")


def test_other_profile_is_drift_of_plan_alone(bed: Bed, tmp_path: Path) -> None:
    _run, host = result(bed, tmp_path, "plan", "-e", "profile=other", "-e", "fail_on=drift", code=2)
    assert sorted(server["action"] for server in host["servers"]) == ["restart", "start", "stop"]
    result(bed, tmp_path, "plan", "-e", "profile=other", "-e", "fail_on=degraded")
    result(bed, tmp_path, "status", "-e", "fail_on=drift,degraded")


def test_json_replaces_the_lines_of_site_and_rollout(bed: Bed, tmp_path: Path) -> None:
    for playbook in ("site", "rollout"):
        run, host = result(bed, tmp_path, playbook, "-e", "output=json")
        assert (host["total_servers"], host["ready_servers"], host["actions"]) == (2, 2, {})
        assert "[1/5]" not in run.output
        assert "SERVERS READY" not in run.output
        lines = run.output.splitlines()
        printed = "\n".join(lines[lines.index("{") : lines.index("}") + 1]) + "\n"
        assert printed == (tmp_path / "result.json").read_text()


def test_failed_site_has_document_with_task(bed: Bed, tmp_path: Path) -> None:
    _run, host = result(bed, tmp_path, "site", "-e", "profile=nothing", code=2)
    assert host["task"] == "Load the profile"
    assert 'There is no profile "nothing"' in host["error"]


def test_failed_rollout_exits_nonzero(bed: Bed, tmp_path: Path) -> None:
    run, host = result(bed, tmp_path, "rollout", "-e", "profile=nothing", code=2)
    assert host["state"] == "failed"
    run.expect('bed failed at the task "Load the profile"')
