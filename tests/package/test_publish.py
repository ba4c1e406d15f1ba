# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Galaxy, execution environments and playbooks of others make of the artifact."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import tomllib
import yaml
from support.pythons import ROOT, search_path
from support.runs import BIN, execute

from .conftest import REPOSITORY

MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))


@pytest.fixture
def tools(installed: Path) -> dict[str, str]:
    """The environment in which a tool finds the others, and the collection as it is installed."""
    return {
        "PATH": f"{BIN}:{search_path()}",
        "ANSIBLE_COLLECTIONS_PATH": str(installed / "collections"),
        "ANSIBLE_HOME": str(installed / "ansible"),
    }


@pytest.fixture
def collection(installed: Path) -> Path:
    return installed / "collections/ansible_collections/magi/llama"


def test_galaxy_imports_the_artifact_without_a_warning(artifact: Path, tmp_path: Path) -> None:
    # The importer's run of ansible-lint leaves some rules out; the test below has them all.
    environment = {"PATH": f"{BIN}:{search_path()}", "GALAXY_IMPORTER_RUN_ANSIBLE_LINT": "false"}
    done = execute([sys.executable, "-m", "galaxy_importer.main", artifact], tmp_path, **environment)
    complaints = [line for line in done.stdout.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert (done.returncode, complaints, done.stderr) == (0, [], "")
    result = json.loads((tmp_path / "importer_result.json").read_text())
    assert result["metadata"]["repository"] == REPOSITORY
    assert result["requires_ansible"] == ">=2.19.0"
    found = {(content["content_type"], content["name"]) for content in result["contents"]}
    assert {("role", "registry"), ("role", "runtime"), ("role", "servers")} <= found
    assert {name for kind, name in found if kind == "module"} == set(MODULES)


def test_ansible_lint_accepts_the_artifact_for_production(collection: Path, tools: dict[str, str]) -> None:
    command = [BIN / "ansible-lint", "--offline", "--profile", "production", "--nocolor", "--format", "pep8"]
    done = execute(command, collection, **tools)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_antsibull_docs_accepts_the_artifact(collection: Path, tools: dict[str, str]) -> None:
    done = execute([BIN / "antsibull-docs", "lint-collection-docs", "--plugin-docs", "."], collection, **tools)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_execution_environments_get_what_the_controller_needs(installed: Path, tools: dict[str, str]) -> None:
    done = execute([BIN / "ansible-builder", "introspect", installed / "collections"], installed, **tools)
    assert done.returncode == 0, done.stderr
    needs = yaml.safe_load(done.stdout)
    [requirement] = [line.split(" #")[0].strip() for line in needs["python"]]
    assert requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert requirement.startswith("httpx")
    assert [line.split(" #")[0].strip() for line in needs["system"]] == [
        "openssh-client [platform:dpkg]",
        "openssh-clients [platform:rpm]",
    ]


def test_every_module_is_in_the_action_group() -> None:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    assert runtime["action_groups"] == {"all": MODULES}


def test_module_defaults_of_the_group_reach_modules_and_action_plugins(
    installed: Path, tools: dict[str, str], tmp_path: Path
) -> None:
    # Both modules require state_dir. Of run_lock an action plugin has the controller's half.
    tasks = [{"magi.llama.server_info": {}}, {"magi.llama.run_lock": {"state": "released"}}]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    # A short path: a socket is below it.
    defaults = {"module_defaults": {"group/magi.llama.all": {"state_dir": f"/tmp/magi-defaults-{os.getpid()}"}}}
    playbook = tmp_path / "play.yml"
    command = [BIN / "ansible-playbook", "-i", "localhost,", playbook]
    playbook.write_text(json.dumps([play | defaults]))
    done = execute(command, installed, **tools)
    assert done.returncode == 0, done.stdout + done.stderr
    playbook.write_text(json.dumps([play]))
    assert "missing required arguments: state_dir" in execute(command, installed, **tools).stdout
