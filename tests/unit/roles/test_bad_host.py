# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose answers are forged decides nothing on the controller, and fails alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import gguf_files as make
from support.bad_host import lying_interpreter
from support.runs import BIN, CHECKOUT, ROOT, execute, write_inventory

FACTS = "ansible_facts"


class Fleet:
    """A host good, and a host bad whose answers are changed; bad comes first, so that tasks that run once run for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = ""

    def run(self, playbook: str | Path, *arguments: str, changes: dict[str, Any], code: int = 2, **env: str) -> str:
        hosts: dict[str, dict[str, object]] = {}
        for name in ("bad", "good"):
            state = self.folder / name
            state.mkdir(exist_ok=True)
            make.small_model(state / f"{name}.gguf")
            hosts[name] = {
                "ansible_python_interpreter": str(BIN / "python"),
                "servers_state_dir": str(state),
                "registry_scan_paths": [str(state)],
                "registry_path": str(state / "registry.json"),
            }
        hosts["bad"]["ansible_python_interpreter"] = lying_interpreter(self.folder / "forged", changes)
        inventory = self.folder / "inventory/hosts.yml"
        inventory.parent.mkdir(exist_ok=True)
        write_inventory(inventory, hosts)
        path = playbook if isinstance(playbook, Path) else ROOT / f"playbooks/{playbook}.yml"
        command = [BIN / "ansible-playbook", "-i", inventory, path, *arguments]
        done = execute(command, self.folder, **{**CHECKOUT, **env})
        self.output = done.stdout + done.stderr
        assert done.returncode == code, self.output
        return " ".join(self.output.split())


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        yield Fleet(Path(folder))


def test_fact_that_is_not_of_the_module_fails_its_host_alone(fleet: Fleet) -> None:
    """Each of these names would be a variable, and win over the inventory."""
    target = fleet.folder / "chosen.json"
    forged = {"server_info": [([FACTS, "output_file"], str(target)), ([FACTS, "output"], "json")]}
    output = fleet.run("status", changes=forged)
    assert "the answer of server_info has the fact 'output', which this module does not set" in output
    assert "good | 0 of 0 servers ready" in output
    assert not target.exists()


@pytest.mark.parametrize("name", ["registry_manifest_dest", "inventory_dir", "servers_profile_paths"])
def test_manifest_is_written_where_the_inventory_says(fleet: Fleet, name: str) -> None:
    chosen = fleet.folder / "chosen"
    value = [str(chosen)] if name == "servers_profile_paths" else str(chosen)
    fleet.run("manifest", changes={"gguf_registry": [([FACTS, name], value)]})
    assert not chosen.exists()
    assert list(yaml.safe_load((fleet.folder / "inventory/models.lock.yml").read_text())["files"]) == ["good.gguf"]


def test_facts_of_earlier_plays_decide_nothing(fleet: Fleet) -> None:
    """Any module's answer may carry facts, and a fact cache keeps those of earlier runs."""
    chosen = fleet.folder / "chosen.json"
    before = [{"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.ping": {}}]}]
    playbook = fleet.folder / "own.yml"
    playbook.write_text(json.dumps([*before, {"import_playbook": str(ROOT / "playbooks/scan.yml")}]))
    path = fleet.folder / "wanted.json"
    forged = {"ping": [([FACTS, "output_file"], str(chosen)), ([FACTS, "servers_profile_paths"], ["/tmp"])]}
    output = fleet.run(playbook, changes=forged)
    assert "names of this collection's variables: output_file, servers_profile_paths" in output
    assert "good | [1/5] discovery 1 models" in output
    assert not chosen.exists()
    # A value of the command line counts, and the bad host is in the document as one that failed.
    fleet.run(playbook, "-e", f"output_file={path}", changes=forged)
    hosts = json.loads(path.read_text())["hosts"]
    assert "servers_profile_paths" in hosts["bad"]["error"]
    assert [model["id"] for model in hosts["good"]["models"]] == ["good"]


@pytest.mark.parametrize(
    ("module", "path", "value", "says"),
    [
        ("gguf_registry", [FACTS, "llama_registry", "models"], [1], "models[0] is 1, not an object"),
        ("gguf_registry", [FACTS, "llama_registry"], "x", "llama_registry is 'x', not an object"),
        ("gguf_registry", ["changes"], [["a"]], "changes is [['a']], not an object"),
        ("gguf_registry", [FACTS, "llama_registry", "models", 0, "id"], "../x", "which does not match"),
    ],
)
def test_answer_of_wrong_shape_fails_its_host_alone(
    fleet: Fleet, module: str, path: list[Any], value: Any, says: str
) -> None:
    output = fleet.run("scan", changes={module: [(path, value)]})
    assert "The host's answer is not used: the answer of" in output and says in output
    assert "good | [1/5] discovery 1 models" in output
    assert "Traceback" not in output


def test_rollout_with_forged_state_has_a_summary(fleet: Fleet) -> None:
    """Ansible's own modules run on the host too, and their answers are not looked at."""
    forged = {"begin_run": [([FACTS, "llama_rollout"], "x")], "ping": [([FACTS, "llama_rollout"], "x")]}
    before = [{"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.ping": {}}]}]
    playbook = fleet.folder / "own.yml"
    playbook.write_text(json.dumps([*before, {"import_playbook": str(ROOT / "playbooks/rollout.yml")}]))
    output = fleet.run(playbook, "-e", "profile=development", changes=forged)
    assert "rollout: 2 failed" in output or "rollout: 1 failed, 1 untouched" in output
    assert "bad failed at the task" in output


@pytest.mark.parametrize("name", ["manifest", "result"])
def test_file_that_the_collection_wrote_is_no_profile(fleet: Fleet, name: str) -> None:
    """It holds text of hosts, and a profile is a template."""
    made = fleet.folder / "made"
    text = {"schema_version": 1, "files": {}, "enabled_models": ["{{ lookup('pipe', 'touch " + str(made) + "') }}"]}
    profiles = fleet.folder / "inventory/profiles"
    profiles.mkdir(parents=True)
    (profiles / f"{name}.yml").write_text(json.dumps(text))
    output = fleet.run("scan", "-e", f"profile={name}", changes={})
    assert "is not a profile: the collection has written it itself" in output
    assert not made.exists()
