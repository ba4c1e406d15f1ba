# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers on this machine with every supported ansible-core, and with every supported Python of a host."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tomllib
from support import reaper
from support.bed import free_ports
from support.matrix import CORES, PREVIEWS, TARGETS
from support.pythons import ROOT, UV, find_pythons
from support.runs import BIN, CHECKOUT, Run, execute, first_start, host_variables, play, server_path, write_inventory
from support.schemas import errors

CACHE = ROOT / ".cache/compat"

pytestmark = pytest.mark.skipif(not server_path().exists(), reason="no llama-server: run make binaries")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because supervisord's socket is in it."""
    with reaper.temporary_folder("magi-") as path:
        yield path


@pytest.fixture(scope="session")
def pythons() -> dict[str, Path]:
    return find_pythons(TARGETS)


def checkout(
    folder: Path, *playbooks: str, bin_dir: Path = BIN, profile: str = "fast-only", variables: Sequence[str] = ()
) -> Run:
    """Run playbooks of this checkout with its own ansible.cfg."""
    environment = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "MAGI_EVENTS": str(folder / "events.jsonl"), **CHECKOUT}
    files = ["--check" if book == "--check" else ROOT / f"{book}.yml" for book in playbooks]
    given = [*([f"profile={profile}"] if "site" in playbooks else []), *variables]
    arguments = ["-i", folder / "hosts.yml", *files, *(word for one in given for word in ("-e", one))]
    return play(arguments, folder, bin_dir, **environment)


def controller(core: str, pythons: dict[str, Path]) -> Path:
    """The bin folder of a virtual environment with this ansible-core, kept in .cache/compat."""
    # CI chooses the Python of each of its jobs.
    wanted = os.environ.get("MAGI_CONTROLLER_PYTHON", "")
    suitable = [version for version in CORES[core] if version.startswith(wanted)]
    version = next((version for version in suitable if version in pythons), None)
    if version is None:
        pytest.skip(f"ansible-core {core} runs on Python {' or '.join(suitable)}, none of which is installed")
    folder = CACHE / f"core-{core}-python-{version}"
    pins = export_pins(core)
    installed = folder / "requirements.txt"
    if not installed.exists() or installed.read_text() != pins:
        subprocess.run(
            [UV, "venv", "--quiet", "--clear", "--no-project", "--python", pythons[version], folder], check=True
        )
        command = [UV, "pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode", "-"]
        subprocess.run([*command, "--python", folder / "bin/python"], input=pins, text=True, check=True)
        installed.write_text(pins)
    return folder / "bin"


def export_pins(core: str) -> str:
    """The requirements, with hashes, of one ansible-core from uv.lock."""
    command = [UV, "export", "--quiet", "--frozen", "--no-header", "--only-group", f"core-{core.replace('.', '-')}"]
    return subprocess.check_output(command, cwd=ROOT, text=True)


def each_core() -> list[object]:
    preview = pytest.mark.xfail(reason="this ansible-core is not released yet", strict=False)
    return [pytest.param(core, marks=[preview] if core in PREVIEWS else []) for core in CORES]


def test_matrix_has_every_ansible_core_of_lock_file() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert {f"core-{core.replace('.', '-')}" for core in CORES} == {name for name in groups if name.startswith("core-")}
    for core in CORES:
        [version] = re.findall(r"^ansible-core==(\S+)", export_pins(core), re.MULTILINE)
        assert version.startswith(f"{core}.")
        # A released version is no longer a preview.
        assert bool(re.search(r"[a-z]", version)) == (core in PREVIEWS), version


@pytest.mark.parametrize("core", each_core())
def test_servers_run_with_ansible_core(core: str, pythons: dict[str, Path], folder: Path) -> None:
    bin_dir = controller(core, pythons)
    port = free_ports(10)
    python = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    write_inventory(folder / "hosts.yml", {"localhost": {**host_variables(folder, port, port + 9), **python}})
    try:
        run = checkout(folder, "site", "--check", bin_dir=bin_dir, profile="development")
        assert "4 to start" in run.output
        assert run.warnings == first_start(folder)
        assert not (folder / "state").exists()

        run = checkout(folder, "site", bin_dir=bin_dir, profile="development")
        assert "4 launched, 4 ready" in run.output
        assert run.warnings == first_start(folder)

        again = ("site", "playbooks/status", "playbooks/verify", "playbooks/scan")
        run = checkout(folder, *again, bin_dir=bin_dir, profile="development")
        assert (run.changed(), run.warnings) == (0, []), run.output
        assert run.output.count(": ok in ") == 4
    finally:
        run = checkout(folder, "playbooks/teardown", bin_dir=bin_dir)
    assert run.warnings == []
    assert not (folder / "state").exists()
    check_events(folder / "events.jsonl", runs=4)


def check_events(path: Path, runs: int) -> None:
    """Each event of each run is as its schema has it, and each run has its end."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [error for event in found for error in errors("event", event)] == []
    ends = [event["data"]["rc"] for event in found if event["type"] == "run_ended"]
    assert ends == [0] * runs and len({event["run"] for event in found}) == runs
    ready = [event["data"]["server"] for event in found if event["type"] == "server_ready" and not event["check"]]
    assert len(ready) == len(set(ready)) == 4
    assert {event["type"] for event in found} >= {"plan", "status", "registry", "line", "warning"}


@pytest.mark.parametrize("core", each_core())
def test_always_block_runs_when_handler_fails(core: str, pythons: dict[str, Path], folder: Path) -> None:
    """This is how the run lock is released. The blocks have the structure of the playbooks and roles."""
    tasks = folder / "roles/r/tasks"
    tasks.mkdir(parents=True)
    (folder / "roles/r/handlers").mkdir()
    (tasks / "main.yml").write_text(
        "- {name: Change, command: /bin/true, notify: Apply}\n- {name: Launch, import_tasks: flush.yml}\n"
    )
    (tasks / "flush.yml").write_text("- {name: Flush, meta: flush_handlers}\n")
    (tasks / "unlock.yml").write_text("- {name: Unlock, debug: {msg: unlocked}}\n")
    (folder / "roles/r/handlers/main.yml").write_text("- {name: Fail, command: /bin/false, listen: Apply}\n")
    (folder / "deploy.yml").write_text(
        "- block: [{import_role: {name: r}}]\n  always: [{import_role: {name: r, tasks_from: unlock.yml}}]\n"
    )
    (folder / "play.yml").write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks: [{import_tasks: deploy.yml}]\n"
    )
    command = [controller(core, pythons) / "ansible-playbook", "-i", "localhost,", "-c", "local", folder / "play.yml"]
    done = execute(command, folder)
    assert (done.returncode, "unlocked" in done.stdout) == (2, True), done.stdout + done.stderr


def test_servers_run_with_every_host_python(pythons: dict[str, Path], folder: Path) -> None:
    """All at once: each host has its own state directory, interpreter and port."""
    port = free_ports(len(pythons))
    hosts = {
        f"python{version}": {
            **host_variables(folder / version, port + at, port + at),
            "ansible_python_interpreter": str(path),
        }
        for at, (version, path) in enumerate(pythons.items())
    }
    write_inventory(folder / "hosts.yml", hosts)
    try:
        run = checkout(folder, "site")
        assert run.output.count("1 launched, 1 ready") == len(hosts)
        assert set(run.warnings) == {text for version in pythons for text in first_start(folder / version)}
        run = checkout(folder, "site", "playbooks/status", "playbooks/restart", variables=("servers=all",))
        assert {numbers["changed"] for numbers in run.recap.values()} == {1}, run.output
        assert run.output.count("0 launched, 1 ready") == len(hosts)
        assert run.warnings == []
    finally:
        run = checkout(folder, "playbooks/teardown")
    assert run.warnings == []
    assert not any((folder / version / "state").exists() for version in pythons)


@pytest.mark.parametrize("version", TARGETS)
def test_python_is_installed(version: str, pythons: dict[str, Path]) -> None:
    """Shows in the report which Pythons were not tested."""
    if version not in pythons:
        pytest.skip(f"no Python {version} on this machine: not tested on hosts that have it")
