# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle for a controller without a network, installed without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import bundle
import pytest
from support.runs import execute

VERSION = "{}.{}".format(*sys.version_info[:2])
ALONE = ["unshare", "--map-root-user", "--net"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle for this Python alone, with an archive and a signed manifest."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "llama-server").write_text("#!/bin/sh\n")
    with tarfile.open(folder / "llama.tar.gz", "w:gz") as archive:
        archive.add(folder / "llama-server", "build/bin/llama-server")
    for name in ("models.lock.yml", "models.lock.yml.minisig"):
        (folder / name).write_text(f"{name}\n")
    made = bundle.make([VERSION], folder, folder / "llama.tar.gz", folder / "models.lock.yml")
    with tarfile.open(made) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [found] = (folder / "unpacked").iterdir()
    return found


def install(bundle: Path, folder: Path, cwd: Path, *, alone: bool = False) -> subprocess.CompletedProcess[str]:
    command = ["sh", bundle / "install.sh", folder]
    # No address of an index could be reached either way.
    return execute(
        [*(ALONE if alone else []), *command], cwd, PYTHON=sys.executable, PIP_INDEX_URL="http://127.0.0.1:9/"
    )


def test_bundle_installs_a_controller_without_a_network(unpacked: Path, tmp_path: Path) -> None:
    alone = subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    folder = tmp_path / "controller"
    done = install(unpacked, folder, tmp_path, alone=alone)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "ansible-playbook [core " in done.stdout and "runtime_release_sha256" in done.stdout
    command = [folder / "venv/bin/ansible-playbook", "-i", "localhost,", "--syntax-check", "magi.llama.site"]
    done = execute(command, tmp_path, ANSIBLE_COLLECTIONS_PATH=str(folder / "collections"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f"playbook: {folder}/collections/" in done.stdout
    assert (folder / "llama-server/llama.tar.gz").exists()
    assert {path.name for path in (folder / "models").iterdir()} == {"models.lock.yml", "models.lock.yml.minisig"}
    subprocess.run([folder / "venv/bin/python", "-c", "import httpx"], check=True)


def test_changed_bundle_and_foreign_folder_are_refused_before_anything_is_installed(
    unpacked: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(unpacked, copy)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    done = install(copy, tmp_path / "mine", tmp_path)
    assert done.returncode == 1 and f"{tmp_path}/mine is not empty" in done.stderr
    with (copy / "bundle.json").open("a") as file:
        file.write(" ")
    done = install(copy, tmp_path / "new", tmp_path)
    assert done.returncode == 1 and "bundle.json: FAILED" in done.stdout + done.stderr
    assert "differs from SHA256SUMS" in done.stderr and not (tmp_path / "new").exists()


def test_archive_without_llama_server_and_missing_manifest_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w"):
        pass
    for path, says in ((tmp_path / "other.tar", "has no file llama-server"), (tmp_path / "none", "not a readable tar")):
        with pytest.raises(bundle.BundleError, match=says):
            bundle.check_archive(path)
    with pytest.raises(bundle.BundleError, match=r"MANIFEST=.* does not exist: write it with manifest\.yml"):
        bundle.check_manifest(tmp_path / "models.lock.yml")
