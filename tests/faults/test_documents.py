# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents of a real host: each follows its JSON Schema, and the state of an older version is migrated."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.bed import PROJECT, Bed
from support.schemas import errors
from support.version_1 import NEW, OLD, put_back

Q2, Q3, Q4 = "tiny-llama-q2_k", "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def state_of(bed: Bed) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in bed.state.iterdir() if path.suffix == ".json"]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def check_state(bed: Bed) -> None:
    documents = {name: read(bed.state / f"{name}.json") for name in ("registry", "deployment", "observed")}
    documents["status"] = bed.module("server_info", state_dir=str(bed.state))["status"]
    assert {name: errors(name, document) for name, document in documents.items()} == {name: [] for name in documents}


def test_documents_of_host_are_valid(bed: Bed, tmp_path: Path) -> None:
    check_state(bed)
    # The plan with a server to start, one to restart and one to stop, and a rollout of it.
    rollout = tmp_path / "rollout.json"
    bed.run("rollout", "-e", "profile=other", "-e", f"output_file={rollout}")
    assert errors("rollout", read(rollout)) == []
    check_state(bed)
    assert read(bed.state / "deployment.json")["previous"]["deployed"]["profile"] == "pair"
    assert Q4 in read(bed.state / "observed.json")["servers"]
    back = bed.module("rollback", state_dir=str(bed.state), _ansible_check_mode=True)
    assert errors("plan", back["ansible_facts"]["llama_plan"]) == []
    bed.run("rollback")
    check_state(bed)
    assert read(bed.state / "deployment.json")["deployed"]["profile"] == "pair"
    bed.run("stop", "-e", f"servers={Q3}")
    check_state(bed)
    assert read(bed.state / "deployment.json")["intended"] == {Q4: "started", Q3: "stopped"}
    bed.run("site")
    assert set(read(bed.state / "deployment.json")["intended"].values()) == {"started"}


def test_plan_is_valid(bed: Bed, tmp_path: Path) -> None:
    """A plan with a server to start, one to restart and one to stop."""
    written = tmp_path / "plan.json"
    task = {"ansible.builtin.copy": {"content": "{{ ansible_facts.llama_plan | to_json }}", "dest": str(written)}}
    plays = [
        {"import_playbook": f"{PROJECT}/playbooks/plan.yml"},
        {"hosts": "all", "gather_facts": False, "tasks": [task]},
    ]
    (tmp_path / "facts.yml").write_text(json.dumps(plays))
    bed.run(os.path.relpath(tmp_path / "facts", PROJECT / "playbooks"), "-e", "profile=other")
    plan = read(written)
    assert {server["action"] for server in plan["servers"]} == {"start", "restart", "stop"}
    assert errors("plan", plan) == []


@pytest.fixture
def old(bed: Bed) -> Bed:
    """The host with the state of an older version, including a previous deployment, and launch configs of its own."""
    bed.run("site", "-e", "profile=other")
    put_back(bed.state)
    for config in (bed.state / "supervisor").glob("**/*.conf"):
        config.write_text(f"; As an older template has it.\n{config.read_text()}")
    assert {path.name for path in bed.state.iterdir()} >= set(OLD)
    return bed


def test_state_of_older_version_is_migrated_without_restart(old: Bed) -> None:
    before, pids = state_of(old), old.pids()
    old.run("status").expect("2 of 2 servers ready")
    old.run("plan", "-e", "profile=other").expect("2 to keep")
    old.run("site", "--check", "--diff", "-e", "profile=other").expect("2 to keep")
    assert state_of(old) == before
    assert old.run("site", "-e", "profile=other").changed > 0
    assert old.pids() == pids
    assert {name for name in os.listdir(old.state) if name.endswith(".json")} == {*NEW, "registry.json"}
    check_state(old)
    assert old.run("site", "-e", "profile=other").changed == 0
    assert old.pids() == pids
    # The launch configs were written again, and the rollback still reaches the deployment before.
    old.run("rollback").expect("2 of 2 ready")
    assert set(old.pids()) == {Q3, Q4}
    assert read(old.state / "deployment.json")["deployed"]["profile"] == "pair"
    back = old.pids()
    old.run("rollback", code=2).expect("There is nothing to roll back to", "profile pair")
    assert old.pids() == back
    # The launch configs that the rollback brought back are those of the older template.
    assert old.run("site").changed > 0
    assert old.run("site").changed == 0
    assert old.pids() == back


def test_rollback_with_state_of_older_version_migrates_it(old: Bed) -> None:
    old.run("rollback").expect("2 of 2 ready")
    assert set(old.pids()) == {Q3, Q4}
    assert {name for name in os.listdir(old.state) if name.endswith(".json")} >= set(NEW)
    assert not set(os.listdir(old.state)) & set(OLD)


def test_migration_interrupted_is_completed_by_next_run(old: Bed) -> None:
    contents, pids = {name: (old.state / name).read_bytes() for name in OLD}, old.pids()
    old.run("site", "-e", "profile=other")
    after = state_of(old)
    # The state after a run that died before it removed the old files.
    for name, content in contents.items():
        (old.state / name).write_bytes(content)
    old.run("site", "-e", "profile=other")
    assert state_of(old) == after
    assert old.pids() == pids
    assert old.run("site", "-e", "profile=other").changed == 0
