# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest playbook, and scans that compare files with the manifest: with two hosts on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._core import run_lock
from support import gguf_files as make
from support.runs import BIN, CHECKOUT, ROOT, execute, write_inventory

pytestmark = pytest.mark.slow


class Fleet:
    """Hosts one and two, each with its own models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "inventory/hosts.yml"
        self.manifest = folder / "inventory/models.lock.yml"
        self.inventory.parent.mkdir()
        local = {"ansible_connection": "local", "ansible_python_interpreter": str(BIN / "python")}
        write_inventory(
            self.inventory,
            {
                name: {
                    **local,
                    "registry_scan_paths": [str(folder / name)],
                    "registry_path": str(folder / f"{name}.json"),
                    "servers_state_dir": str(folder / f"{name}.state"),
                }
                for name in ("one", "two")
            },
        )

    def run(self, playbook: str, *arguments: str, code: int = 0, inventory: Path | None = None) -> str:
        command = [
            BIN / "ansible-playbook",
            "-i",
            inventory or self.inventory,
            ROOT / f"playbooks/{playbook}.yml",
            *arguments,
        ]
        done: CompletedProcess[str] = execute(command, self.folder, **CHECKOUT)
        assert done.returncode == code, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def listed(self) -> dict[str, str]:
        return {name: entry["sha256"] for name, entry in yaml.safe_load(self.manifest.read_text())["files"].items()}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    for host in ("one", "two"):
        make.small_model(tmp_path / host / f"{host}.gguf")
        make.small_model(tmp_path / host / "both.gguf")
    return Fleet(tmp_path)


def test_manifest_of_fleet_keeps_entries_of_other_hosts(fleet: Fleet) -> None:
    (fleet.folder / "one/broken.gguf").write_bytes(b"GGUF")
    assert "warning not in the manifest" in fleet.run("manifest")
    first = fleet.listed()
    assert list(first) == ["both.gguf", "one.gguf", "two.gguf"]

    # Entries of hosts that are not scanned, or that fail, are kept.
    make.small_model(fleet.folder / "one/one.gguf", general__name="Other")
    make.small_model(fleet.folder / "one/new.gguf")
    fleet.run("manifest", "--limit", "one")
    second = fleet.listed()
    assert list(second) == ["both.gguf", "new.gguf", "one.gguf", "two.gguf"]
    assert {name for name in first if first[name] != second[name]} == {"one.gguf"}
    fleet.run("manifest", "-e", '{"registry_path": "/proc/none/{{ inventory_hostname }}.json"}', code=2)
    assert fleet.listed() == second

    # A scan of all hosts removes entries of deleted files.
    (fleet.folder / "one/new.gguf").unlink()
    (fleet.folder / "two/two.gguf").unlink()
    fleet.run("manifest")
    assert list(fleet.listed()) == ["both.gguf", "one.gguf"]


def test_manifest_of_all_hosts_with_models_drops_deleted_files(fleet: Fleet) -> None:
    """A host that is only a gateway is not scanned, and is not missing."""
    inventory = json.loads(fleet.inventory.read_text())
    inventory["all"]["children"] = {"gateways": {"hosts": {"gate": {}}}}
    fleet.inventory.write_text(json.dumps(inventory), encoding="utf-8")
    fleet.run("manifest")
    (fleet.folder / "two/two.gguf").unlink()
    fleet.run("manifest")
    assert list(fleet.listed()) == ["both.gguf", "one.gguf"]


def test_scan_with_changed_file_fails(fleet: Fleet) -> None:
    fleet.run("manifest")
    assert "warning" not in fleet.run("scan", "--limit", "one").replace("warning two.gguf is in the manifest", "")
    make.small_model(fleet.folder / "one/one.gguf", general__name="Changed")
    output = fleet.run("scan", "--limit", "one", code=2)
    assert f"{fleet.folder}/one/one.gguf has " in output and "the manifest says" in output
    fleet.run("scan", "--limit", "one", "-e", '{"registry_manifest_file": ""}')


def test_signed_manifest_is_written_checked_and_refused_once_changed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{ROOT}/.cache/debian/bin{os.pathsep}{os.environ['PATH']}")
    if not shutil.which("minisign"):
        pytest.skip("minisign is missing: make .cache/bin/.export")
    secret, public = fleet.folder / "secret", fleet.folder / "public"
    subprocess.run(["minisign", "-G", "-W", "-p", public, "-s", secret], check=True, capture_output=True)
    wanted = ("-e", f"registry_manifest_public_key={public}")
    assert "models.lock.yml does not exist" in fleet.run("scan", *wanted, code=2)
    assert "so scans would refuse a manifest without a signature" in fleet.run("manifest", *wanted, code=2)
    assert not fleet.manifest.exists()
    assert "signed" in fleet.run("manifest", *wanted, "-e", f"sign_with={secret}")
    fleet.run("scan", *wanted)
    fleet.manifest.write_text(fleet.manifest.read_text().replace("schema_version: 1", "schema_version:  1"))
    refused = fleet.run("scan", *wanted, code=2)
    assert f"{fleet.manifest} was changed since it was signed" in refused


def test_manifest_that_cannot_be_read_is_named(fleet: Fleet) -> None:
    fleet.manifest.write_text("files:\n  a: {\n", encoding="utf-8")
    output = fleet.run("manifest", "--limit", "one", code=2)
    assert f"manifest ({fleet.manifest}, line 3): YAML parsing failed" in output
    assert fleet.manifest.read_text(encoding="utf-8") == "files:\n  a: {\n"


def test_manifest_with_unreadable_file_fails(fleet: Fleet) -> None:
    fleet.run("manifest")
    before = fleet.manifest.read_text()
    scan = {"without_checksum": ["/m/x.gguf"], "manifest": {"files": {}}, "changes": {}, "warned": []}
    output = fleet.run("manifest", "-e", json.dumps({"__registry_scan": scan}), code=2)
    assert "/m/x.gguf could not be read completely" in output
    assert fleet.manifest.read_text() == before


@pytest.mark.parametrize("playbook", ["scan", "manifest"])
def test_scan_alone_runs_during_another_run(fleet: Fleet, playbook: str) -> None:
    run_lock.acquire(str(fleet.folder / "one.state"), run_lock.Run("other", "controller", "user", 1, "site.yml"))
    fleet.run(playbook, "--limit", "one")


def test_files_in_folder_inventory_are_found_and_moved_out_of_its_way(fleet: Fleet) -> None:
    folder = fleet.inventory.parent
    hidden = folder / ".magi-llama"
    fleet.run("manifest")
    (folder / "profiles").mkdir()
    (folder / "profiles/mine.yml").write_text("enabled_models: [{tier: Q4}]\n", encoding="utf-8")
    before = fleet.listed()

    # Both are used where they were, and the run says what to do about them.
    (fleet.folder / "one/one.gguf").unlink()
    output = fleet.run("scan", "-e", "profile=mine", inventory=folder)
    # Each host's once: by our report, and not by ansible-core too.
    squeezed = "".join(output.split())
    assert squeezed.count("one.gguf is in the manifest, but not on this host".replace(" ", "")) == 2
    for name in ("profiles", "models.lock.yml"):
        # Ansible wraps lines also after the dashes of a path.
        command = f"cd {folder} && mkdir -p .magi-llama && mv {name} .magi-llama/"
        assert "".join(command.split()) in squeezed

    # A manifest of some hosts is made from the one that was there.
    fleet.run("manifest", "--limit", "two", "--check", inventory=folder)
    assert fleet.listed() == before
    output = fleet.run("manifest", "--limit", "two", inventory=folder)
    assert f"moved {folder}/models.lock.yml to {hidden}/models.lock.yml" in output
    assert not fleet.manifest.exists()
    fleet.manifest = hidden / "models.lock.yml"
    assert fleet.listed() == before
    fleet.run("manifest", inventory=folder)
    assert list(fleet.listed()) == ["both.gguf", "two.gguf"]

    (folder / "profiles").rename(hidden / "profiles")
    listing = [BIN / "ansible-inventory", "-i", folder, "--list"]
    done = execute(listing, fleet.folder, **CHECKOUT)
    assert (done.returncode, done.stderr) == (0, "")
    output = fleet.run("scan", "-e", "profile=mine", "--limit", "two", inventory=folder)
    assert "Skipping" not in output
    assert "mkdir" not in output
