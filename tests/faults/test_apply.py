# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan is applied as it was approved, or nothing is done: on a real host, with real servers."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from support.bed import Bed, Outcome
from support.schemas import errors

LATER = "Run plan.yml again, with the same hosts, and apply its new hash if that is what you want."


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return tmp_path / "plan.json"


def planned(bed: Bed, document: Path, *arguments: str) -> str:
    """The hash of a plan."""
    output = bed.run("plan", "-e", f"output_file={document}", *arguments).output
    found: str = json.loads(document.read_text())["hash"]
    assert f"hash  {found[:16]} " in output
    assert errors("result", json.loads(document.read_text())) == []
    return found


def files(bed: Bed) -> dict[str, str]:
    """What is deployed, the launch configs, and the lock, which is empty when it is released."""
    found = [bed.state / "deployment.json", bed.state / "run.lock", *(bed.state / "supervisor/conf.d").iterdir()]
    assert not (bed.state / "run.lock").exists() or not (bed.state / "run.lock").read_text()
    return {str(path): path.read_text() for path in found if path.exists()}


def test_plan_is_applied_by_its_hash_and_then_is_no_longer_the_plan(bed: Bed, document: Path) -> None:
    before = bed.pids()
    change = ("-e", "profile=other")
    found = planned(bed, document, *change)
    assert planned(bed, document, *change) == found
    wanted = json.loads(document.read_text())["hosts"]["bed"]["servers"]
    bed.run("site", *change, "-e", f"apply={found[:16]}")
    after = bed.pids()
    running = {name: list(process.argv) for name, process in bed.processes().items()}
    assert running == {one["name"]: one["argv"] for one in wanted if one["action"] != "stop"}
    kept = [one["name"] for one in wanted if one["action"] == "keep"]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    again = bed.run("site", *change, "-e", f"apply={document}", code=2)
    again.expect(f"This is no longer the plan {found[:16]}: bed differs.", "is to keep now", LATER)
    assert bed.pids() == after
    bed.run("site")


def test_changed_host_or_variable_is_refused_and_nothing_is_touched(bed: Bed, document: Path) -> None:
    name = "tiny-llama-q4_k_m"
    found = planned(bed, document)

    def refused(*says: str, more: tuple[str, ...] = ()) -> None:
        pids, before = bed.pids(), files(bed)
        run = bed.run("site", "-e", f"apply={document}", *more, code=2)
        run.expect(f"This is no longer the plan {found[:16]}", *says, "Nothing was changed on any host.")
        assert bed.pids() == pids
        assert files(bed) == before

    refused("stop_timeout 3 → 4", more=("-e", "servers_stop_timeout=4"))
    refused("profile pair → other", more=("-e", "profile=other"))
    file = bed.models / "tiny-llama-Q4_K_M.gguf"
    os.utime(file, ns=(1, 1))
    refused(f"{name}: was to keep, is to restart now, the model's file changed")
    bed.run("site")
    bed.run("stop", "-e", f"servers={name}")
    found = planned(bed, document)
    bed.run("start", "-e", f"servers={name}")
    refused(f"{name}: was to start, is to keep now")


def test_host_that_changes_before_its_lock_is_taken_is_refused(bed: Bed, document: Path, tmp_path: Path) -> None:
    found = planned(bed, document)
    pids, before, now = bed.pids(), (bed.state / "deployment.json").read_text(), tmp_path / "now"
    callback = {"ANSIBLE_CALLBACKS_ENABLED": "at_task", "MAGI_NOW": str(now)}
    run = bed.start("site", "-e", f"apply={found}", env=callback)
    # The plans of all hosts have been compared here.
    while run.poll() is None and not (now.exists() and "Keep the plan" in now.read_text()):
        time.sleep(0.01)
    os.utime(bed.models / "tiny-llama-Q4_K_M.gguf", ns=(2, 2))
    output, _ = run.communicate()
    said = Outcome(run.returncode, output)
    said.expect(
        "The plan of this host changed after it was compared",
        "tiny-llama-q4_k_m: was to keep, is to restart now, the model's file changed",
        "Nothing was started or stopped on this host.",
    )
    assert said.code == 2
    assert bed.pids() == pids
    assert (bed.state / "deployment.json").read_text() == before
    assert files(bed)
    bed.run("site")


def test_killed_server_is_refused_by_the_hash_alone_too(bed: Bed, document: Path) -> None:
    found = planned(bed, document)
    os.kill(bed.supervisord(), signal.SIGKILL)
    for pid in bed.pids().values():
        os.kill(pid, signal.SIGKILL)
    run = bed.run("site", "-e", f"apply={found}", code=2)
    run.expect(f"This is no longer the plan {found[:16]}, it is", "bed: tiny-llama-q4_k_m to start, not running")
    assert bed.pids() == {}


def test_plan_is_applied_by_rollout(bed: Bed, document: Path) -> None:
    found = planned(bed, document)
    pids = bed.pids()
    bed.run("rollout", "-e", f"apply={found[:16]}")
    assert bed.pids() == pids
    refused = bed.run("rollout", "-e", f"apply={document}", "-e", "servers_stop_timeout=4", code=2)
    refused.expect("bed: tiny-llama-q3_k_m: was to keep, is to restart now", "stop_timeout 3 → 4", "1 failed")
    assert bed.pids() == pids
