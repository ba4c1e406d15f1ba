# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The artifact: its content, and that it works without the rest of this repository."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.bed import free_ports
from support.pythons import ROOT
from support.runs import BIN, after_reboot, execute, first_start, host_variables, play, server_path, write_inventory

# The files that a user of the collection gets.
PAPERS = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
FOLDERS = ("changelogs", "docs", "inventories/example", "meta", "playbooks", "plugins", "roles")

NEEDS_SERVER = pytest.mark.skipif(not server_path().exists(), reason="no llama-server: run make binaries")


def environment(installed: Path) -> dict[str, str]:
    return {"ANSIBLE_COLLECTIONS_PATH": str(installed / "collections")}


def members(artifact: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(artifact) as archive:
        return {member.name: member for member in archive}


def test_artifact_has_only_files_and_folders(artifact: Path) -> None:
    others = [name for name, member in members(artifact).items() if not (member.isfile() or member.isdir())]
    assert others == []


def test_artifact_has_exactly_the_user_files(artifact: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *FOLDERS, *PAPERS]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    # The generators of the documents are not included.
    source = re.compile(r"docs/(.*\.py|reference\.yml)")
    expected = {name for name in listed if (ROOT / name).exists() and not source.fullmatch(name)}
    found = {name for name, member in members(artifact).items() if member.isfile()}
    assert found - {"MANIFEST.json", "FILES.json"} == expected


def test_readme_links_are_valid(artifact: Path) -> None:
    with tarfile.open(artifact) as archive:
        readme = archive.extractfile("README.md").read().decode()
    links = {link for link in re.findall(r"\]\(([^)#]+)", readme) if "://" not in link}
    assert links
    assert links <= members(artifact).keys()


def test_modules_and_playbooks_are_all_found(installed: Path) -> None:
    done = execute([BIN / "ansible-doc", "--json", "--list", "magi.llama"], installed, **environment(installed))
    modules = {f"magi.llama.{path.stem}" for path in (ROOT / "plugins/modules").glob("*.py")}
    assert json.loads(done.stdout).keys() == modules, done.stderr
    playbooks = [f"magi.llama.{path.stem}" for path in (ROOT / "playbooks").glob("*.yml")]
    command = [BIN / "ansible-playbook", "-i", "localhost,", "--syntax-check", *playbooks]
    done = execute(command, installed, **environment(installed))
    assert (done.returncode, done.stderr) == (0, "")


@NEEDS_SERVER
def test_check_with_defaults_succeeds(installed: Path) -> None:
    """Without an inventory: the run is for this machine, and profiles are in the working directory."""
    (installed / "profiles").mkdir()
    (installed / "profiles/mine.yml").write_text("enabled_models: [{tier: Q4}]\n", encoding="utf-8")
    check_with_defaults(installed, "development", "4 to start")
    check_with_defaults(installed, "mine", "1 to start")


def check_with_defaults(installed: Path, profile: str, says: str) -> None:
    # The default state directory may be in use on this machine already.
    arguments = ["magi.llama.site", "--check", "--diff", "-e", f"profile={profile}"]
    arguments += ["-e", f"servers_state_dir={installed}/none"]
    given = {"MODEL_SCAN_PATH": str(ROOT / ".cache/models"), "LLAMA_SERVER_PATH": str(server_path())}
    run = play(arguments, installed, PWD=str(installed), **environment(installed), **given)
    assert says in run.output
    expected = (
        "There is no registry",
        "provided hosts list is empty",
        "No inventory was parsed",
        after_reboot(by_name=True),
    )
    assert [line for line in run.warnings if not any(text in line for text in expected)] == []


@NEEDS_SERVER
def test_installed_collection_runs_servers(installed: Path) -> None:
    port = free_ports(10)
    variables = host_variables(installed, port, port + 9)
    # As a user without root would write it; the home is the folder here.
    variables |= {"servers_state_dir": "~/state", "registry_path": "~/state/registry.json"}
    write_inventory(installed / "hosts.yml", {"localhost": variables})
    common = {"cwd": installed, **environment(installed)}
    try:
        run = play(["-i", "hosts.yml", "magi.llama.site", "-e", "profile=production"], **common)
        assert "2 launched, 2 ready" in run.output
        assert run.warnings == first_start(installed, by_name=True)
        again = ["magi.llama.site", "magi.llama.status", "magi.llama.verify"]
        run = play(["-i", "hosts.yml", *again, "-e", "profile=production"], **common)
        assert (run.changed(), run.warnings) == (0, []), run.output
    finally:
        run = play(["-i", "hosts.yml", "magi.llama.teardown"], **common)
    assert run.warnings == []
    assert not (installed / "state").exists()
