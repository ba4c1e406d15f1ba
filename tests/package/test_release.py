# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""make release, in a copy of this checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import release
import yaml
from support.pythons import ROOT

from .conftest import REPOSITORY

LATER = "7.8.9"
BIN = ROOT / ".venv/bin"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the files of this one, all committed."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=folder, text=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "--message=test")


def make(folder: Path, version: str, repository: str = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run make release with the virtual environment of this checkout."""
    command = ["make", f"--assume-old={ROOT}/.venv/.ready", "release", f"VENV={ROOT}/.venv"]
    command += [f"VERSION={version}", f"REPOSITORY={repository}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_release_has_version_changelog_artifact_and_checksum(checkout: Path) -> None:
    done = make(checkout, LATER)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((checkout / "galaxy.yml").read_text())["version"] == LATER
    assert not list((checkout / "changelogs/fragments").glob("*.yml"))
    changelog = (checkout / "CHANGELOG.md").read_text().replace("\\", "")
    assert f"v{LATER}" in changelog and "Bugfixes" not in changelog
    name = f"magi-llama-{LATER}.tar.gz"
    subprocess.run(["sha256sum", "--check", "--quiet", f"{name}.sha256"], cwd=checkout / "dist", check=True)
    with tarfile.open(checkout / "dist" / name) as archive:
        about = json.load(archive.extractfile("MANIFEST.json"))["collection_info"]
        assert f"v{LATER}" in archive.extractfile("CHANGELOG.md").read().decode().replace("\\", "")
        # What modules write into documents on a host.
        version = archive.extractfile("plugins/module_utils/_core/version.py").read().decode()
    assert version.endswith(f'COLLECTION_VERSION = "{LATER}"\n')
    assert about["version"] == LATER
    assert {about[key] for key in ("repository", "homepage")} == {REPOSITORY}
    assert about["issues"] == f"{REPOSITORY}/issues"
    assert about["documentation"] == f"{REPOSITORY}#readme"

    # The released tree passes what lint checks of it, with this checkout's tools.
    for command in (["yamllint", "--strict", "."], ["codespell"], ["antsibull-changelog", "lint"]):
        lint = subprocess.run(
            [BIN / command[0], *command[1:]], cwd=checkout, capture_output=True, text=True, check=False
        )
        assert lint.returncode == 0, lint.stdout + lint.stderr

    # At the tag, only the artifact is built again.
    commit(checkout)
    done = make(checkout, LATER)
    assert (done.returncode, git(checkout, "status", "--porcelain")) == (0, "")
    done = make(checkout, "7.8.8")
    assert "7.8.9 is released already. Choose a later version" in done.stderr


def test_a_tree_with_changes_is_not_released(checkout: Path) -> None:
    (checkout / "galaxy.yml").write_text((checkout / "galaxy.yml").read_text() + "\n")
    done = make(checkout, LATER)
    assert done.returncode != 0
    assert "Commit or remove these first:\n M galaxy.yml" in done.stderr


@pytest.mark.parametrize(
    ("version", "repository", "says"),
    [
        ("1.0", REPOSITORY, "VERSION=1.0 is not a semantic version"),
        ("", REPOSITORY, "VERSION= is not a semantic version"),
        ("1.0.0", "", "REPOSITORY= is not an address"),
        ("1.0.0", "http://example.org/magi", "is not an address such as https://"),
    ],
)
def test_a_wrong_version_or_address_is_refused(
    version: str, repository: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main([version, repository]) == 1
    assert says in capsys.readouterr().err


def test_first_release_does_not_show_fixes_of_what_was_never_released(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("bugfixes: [b]\nminor_changes: [m]\ntrivial: [t]\n")
    (tmp_path / "b.yml").write_text("minor_changes: [n]\n")
    release.fold_fixes(tmp_path)
    folded = {path.name: yaml.safe_load(path.read_text()) for path in tmp_path.iterdir()}
    assert folded == {"a.yml": {"minor_changes": ["m"], "trivial": ["t", "b"]}, "b.yml": {"minor_changes": ["n"]}}


def test_prereleases_come_before_their_release() -> None:
    versions = ["1.10.0", "1.0.1", "1.0.0", "1.2.0", "1.0.0-rc.1"]
    ordered = ["1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0"]
    assert sorted(versions, key=release.sort_key) == ordered


def test_galaxy_yml_alone_has_the_version_and_no_file_has_an_address_of_ours() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    assert not {"repository", "homepage", "documentation", "issues"} & galaxy.keys()
    assert 'version = "0"\n' in (ROOT / "pyproject.toml").read_text()
    # No place that the project does not have is named anywhere.
    command = ["git", "grep", "--line-number", "-E", r"(github|gitlab)\.com/[m]agi-"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""
