# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a release: version, changelog, artifact, checksum. Run with `make release VERSION=0.1.0 REPOSITORY=https://…`.

The addresses in the artifact's galaxy.yml derive from REPOSITORY, so that the tree names no place where it may not be.
Nothing is committed, tagged or uploaded. With a version that the changelog has already, only the artifact is built.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
# Semantic versioning, as Galaxy wants it; a build number has no place in a release.
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-[0-9A-Za-z.-]+)?")


class ReleaseError(Exception):
    """The release cannot be made; the message says what to do."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Make a release of the collection.")
    parser.add_argument("version", help="the version, such as 0.1.0")
    parser.add_argument("repository", help="the address of the repository, such as https://example.org/magi/llama")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where artifact and checksum go")
    given = parser.parse_args(arguments)
    try:
        if not VERSION.fullmatch(given.version):
            raise ReleaseError(f"VERSION={given.version} is not a semantic version. Write one such as 0.1.0.")
        addresses = derive_addresses(given.repository)
        has_new_changelog = prepare(ROOT, given.version)
        artifact = build(ROOT, addresses, given.output)
        checksum = write_checksum(artifact)
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print(f"{artifact}\n{checksum}")
    if has_new_changelog:
        print(f"Next: review CHANGELOG.md, commit, tag the commit v{given.version} and push both.")
    return 0


def derive_addresses(repository: str) -> dict[str, str]:
    """The keys of galaxy.yml that hold an address."""
    if not re.fullmatch(r"https://[^/\s]+/[^\s?#]+[^\s?#/]", repository):
        raise ReleaseError(f"REPOSITORY={repository} is not an address such as https://example.org/magi/llama.")
    return {
        "repository": repository,
        "homepage": repository,
        "documentation": f"{repository}#readme",
        "issues": f"{repository}/issues",
    }


def prepare(root: Path, version: str) -> bool:
    """Set the version and assemble the changelog; False where that was done before.

    Raises ReleaseError where the tree has changes or the version is not a later one."""
    changed = run(["git", "status", "--porcelain"], root).splitlines()
    if changed:
        raise ReleaseError("Commit or remove these first:\n" + "\n".join(changed))
    galaxy = root / "galaxy.yml"
    current = yaml.safe_load(galaxy.read_text(encoding="utf-8"))["version"]
    released = read_released(root / "changelogs/changelog.yaml")
    if version in released:
        if current != version:
            raise ReleaseError(f"{version} is released already, and galaxy.yml has {current}. Choose a later version.")
        return False
    later = [other for other in released if sort_key(other) > sort_key(version)]
    if later:
        raise ReleaseError(f"{later[0]} is released already. Choose a later version than that.")
    if not list((root / "changelogs/fragments").glob("*.yml")):
        raise ReleaseError("changelogs/fragments has no fragment, so there is nothing to release.")
    set_version(galaxy, "version: ", version)
    if not released:
        fold_fixes(root / "changelogs/fragments")
    # What modules read on a host, where there is no galaxy.yml.
    set_version(root / "plugins/module_utils/_core/version.py", "COLLECTION_VERSION = ", f'"{version}"')
    run([BIN / "antsibull-changelog", "release", "--version", version], root)
    return True


def fold_fixes(fragments: Path) -> None:
    """Move bug fixes to the section that is not shown: before the first release no one has had the bugs."""
    for path in fragments.glob("*.yml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        fixes = content.pop("bugfixes", [])
        if fixes:
            content["trivial"] = [*content.get("trivial", []), *fixes]
            path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def set_version(path: Path, key: str, version: str) -> None:
    """Set the version in the one line that begins with the key. Raises ReleaseError where there is not exactly one."""
    text, count = re.subn(rf"(?m)^{re.escape(key)}.*$", f"{key}{version}", path.read_text(encoding="utf-8"))
    if count != 1:
        raise ReleaseError(f"{path} has {count} lines that begin with {key!r}; one is needed.")
    path.write_text(text, encoding="utf-8")


def read_released(path: Path) -> list[str]:
    """The versions in changelog.yaml, which is missing before the first release."""
    if not path.exists():
        return []
    return list(yaml.safe_load(path.read_text(encoding="utf-8")).get("releases") or {})


def sort_key(version: str) -> tuple[list[int], bool]:
    """A prerelease comes before its release; prereleases of one version count as equal."""
    numbers = VERSION.fullmatch(version)
    assert numbers is not None, version
    return [int(number) for number in numbers.groups()], "-" not in version


def build(root: Path, addresses: dict[str, str], output: Path) -> Path:
    """Build the artifact from the files that git has or would take, with the addresses in its galaxy.yml."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], root).split("\0")
    with tempfile.TemporaryDirectory(prefix="magi-release-") as folder:
        copy = Path(folder, "llama")
        for name in filter(None, listed):
            source = root / name
            # git still lists what was deleted and not yet committed.
            if source.exists():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy / name, follow_symlinks=False)
        with (copy / "galaxy.yml").open("a", encoding="utf-8") as galaxy:
            galaxy.writelines(f"{key}: {value}\n" for key, value in addresses.items())
        built = Path(folder, "built")
        run([BIN / "ansible-galaxy", "collection", "build", copy, "--output-path", built], copy)
        [artifact] = built.glob("*.tar.gz")
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(artifact, output))


def write_checksum(artifact: Path) -> Path:
    """Write the file that `sha256sum --check` reads, next to the artifact."""
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    path = artifact.with_name(f"{artifact.name}.sha256")
    path.write_text(f"{digest}  {artifact.name}\n", encoding="utf-8")
    return path


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """The standard output of a program; ReleaseError with what it printed where it fails."""
    # antsibull-changelog looks for ansible-doc on PATH.
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
