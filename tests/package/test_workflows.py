# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workflows of this repository, and the examples for those of users, whose commands are run on real servers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.bed import free_ports
from support.matrix import CORES, PREVIEWS
from support.pythons import ROOT, search_path
from support.runs import BIN, execute, host_variables, play, server_path, write_inventory

WORKFLOWS = ROOT / ".github/workflows"
EXAMPLES = ROOT / "docs/ci"
# What they download is not on every machine that runs the tests, and the collection is installed already.
DOWNLOADS = re.compile(
    r"pip install --requirement requirements.txt|ansible-galaxy collection install --requirements-file"
)


def load(path: Path) -> Any:
    # YAML 1.1 takes the key "on" of a workflow for a boolean.
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        *(("github-workflows", path) for path in sorted(WORKFLOWS.glob("*.yml"))),
        ("github-workflows", EXAMPLES / "github-actions.yml"),
        ("github-workflows", EXAMPLES / "approval-github-actions.yml"),
        ("gitlab-ci", EXAMPLES / "gitlab-ci.yml"),
        ("gitlab-ci", EXAMPLES / "approval-gitlab-ci.yml"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_file_follows_its_schema(schema: str, path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_has_each_pair_of_the_matrix() -> None:
    job = load(WORKFLOWS / "ci.yml")["jobs"]["matrix"]
    pairs = [(entry["core"], entry["python"]) for entry in job["strategy"]["matrix"]["include"]]
    assert pairs == [(core, python) for core, pythons in CORES.items() for python in pythons]
    assert job["continue-on-error"] == " || ".join(f"${{{{ matrix.core == '{core}' }}}}" for core in sorted(PREVIEWS))


def test_the_workflows_call_targets_that_exist() -> None:
    texts = "\n".join(path.read_text() for path in WORKFLOWS.glob("*.yml"))
    targets = {target for line in re.findall(r"\bmake ((?:[a-z.][\w./-]*[ \n])+)", texts) for target in line.split()}
    assert {"lint", "sanity", "pytest", "release"} <= targets
    known = set(re.findall(r"^([a-z.][\w./-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets - {"python3", "python3-venv"} <= known


@pytest.fixture
def repository(installed: Path) -> Iterator[Path]:
    """A repository as the examples expect it, whose fleet is this machine."""
    port = free_ports(10)
    (installed / "inventories/production").mkdir(parents=True, exist_ok=True)
    variables = {**host_variables(installed, port, port + 9), "profile": "production"}
    write_inventory(installed / "inventories/production/hosts.yml", {"localhost": variables})
    yield installed
    play(
        ["-i", "inventories/production/hosts.yml", "magi.llama.teardown"],
        installed,
        ANSIBLE_COLLECTIONS_PATH=str(installed / "collections"),
    )


def shell(script: str, repository: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a step as the runners do, but for its downloads."""
    assert "${{" not in script
    lines = "\n".join(line for line in script.splitlines() if not DOWNLOADS.search(line))
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(repository / "collections"), **variables}
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", lines]
    done = execute(command, repository, PATH=f"{BIN}:{search_path()}", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def assert_rolled_out(repository: Path) -> None:
    assert "2 to start" in (repository / "plan.txt").read_text()
    summary = json.loads((repository / "rollout.json").read_text())
    assert (summary["is_complete"], summary["updated"]) == (True, 1)
    assert (repository / ".ssh/id_ed25519").read_text() == "a key\n"
    assert (repository / ".ssh/id_ed25519").stat().st_mode & 0o777 == 0o600
    assert (repository / ".ssh/known_hosts").read_text() == "hosts\n"


@pytest.mark.skipif(not server_path().exists(), reason="no llama-server: run make binaries")
def test_the_steps_of_the_github_example_plan_and_roll_out(repository: Path) -> None:
    workflow = load(EXAMPLES / "github-actions.yml")
    [job] = workflow["jobs"].values()
    secrets = {"SSH_PRIVATE_KEY": "a key", "SSH_KNOWN_HOSTS": "hosts"}
    variables = {**workflow["env"], "GITHUB_STEP_SUMMARY": str(repository / "summary.md")}
    for event in ("pull_request", "push"):
        for step in job["steps"]:
            condition = step.get("if", event)
            if "run" in step and event in condition:
                asked = {name: secrets[name] for name in step.get("env", {})}
                shell(step["run"], repository, {**variables, **asked})
    assert_rolled_out(repository)
    assert (repository / "plan.txt").read_text() in (repository / "summary.md").read_text()


@pytest.mark.skipif(not server_path().exists(), reason="no llama-server: run make binaries")
def test_the_jobs_of_the_github_example_with_an_approval_apply_what_was_planned(repository: Path) -> None:
    workflow = load(EXAMPLES / "approval-github-actions.yml")
    secrets = {"SSH_PRIVATE_KEY": "a key", "SSH_KNOWN_HOSTS": "hosts"}
    variables = {**workflow["env"], "GITHUB_STEP_SUMMARY": str(repository / "summary.md")}
    assert workflow["jobs"]["apply"]["needs"] == "plan"
    for job in ("plan", "apply"):
        for step in workflow["jobs"][job]["steps"]:
            if "run" in step:
                shell(step["run"], repository, {**variables, **{name: secrets[name] for name in step.get("env", {})}})
    assert_rolled_out(repository)
    assert "magi.llama.site -e apply=" in (repository / "summary.md").read_text()


def run_stages(pipeline: dict[str, Any], repository: Path) -> None:
    variables = dict(pipeline["variables"])
    for name, text in {"SSH_PRIVATE_KEY": "a key\n", "SSH_KNOWN_HOSTS": "hosts\n"}.items():
        (repository / name).write_text(text)
        variables[name] = str(repository / name)
    for stage in pipeline["stages"]:
        shell("\n".join([*pipeline["default"]["before_script"], *pipeline[stage]["script"]]), repository, variables)


@pytest.mark.skipif(not server_path().exists(), reason="no llama-server: run make binaries")
@pytest.mark.parametrize("example", ["gitlab-ci.yml", "approval-gitlab-ci.yml"])
def test_the_jobs_of_the_gitlab_examples_plan_and_roll_out(repository: Path, example: str) -> None:
    run_stages(load(EXAMPLES / example), repository)
    assert_rolled_out(repository)


def test_the_examples_install_what_the_collection_needs() -> None:
    requirements = set((EXAMPLES / "requirements.txt").read_text().split())
    assert requirements == {"ansible-core>=2.19", *(ROOT / "meta/ee-requirements.txt").read_text().split("\n")[1:-1]}
    assert load(EXAMPLES / "requirements.yml") == {"collections": [{"name": "magi.llama"}]}
