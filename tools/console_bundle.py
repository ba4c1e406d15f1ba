# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the console's bundle: one file with all that role console installs. Run with `make console-bundle`.

The bundle, an uncompressed tar, holds

    bundle.json                  {"schema_version": 1, "version": "0.1.0", "machine": "x86_64", "pythons": ["3.13"]}
    requirements-3.13.txt        for each Python: every package with its version and the SHA-256 of its wheels
    wheels/*.whl                 these packages, and the console itself
    magi-llama-0.1.0.tar.gz      the collection, whose playbooks are the console's jobs

so that the console's host needs no package index. The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import release
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / ".cache/uv/bin/uv"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# The oldest C library that the wheels have to run with: that of Debian 11 and of EL 9's predecessor.
PLATFORMS = ("manylinux_2_28_{machine}", "manylinux_2_17_{machine}", "manylinux2014_{machine}")
SOURCE_DATE = 1577836800  # 2020-01-01; a zip cannot be older than 1980


class BundleError(Exception):
    """The bundle cannot be made; the message says what to do."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Make the bundle that role console installs.")
    parser.add_argument("pythons", nargs="*", default=PYTHONS, help="versions of Python, such as 3.13; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder of the bundle")
    given = parser.parse_args(arguments)
    try:
        if unknown := sorted(set(given.pythons) - set(PYTHONS)):
            raise BundleError(f"PYTHONS={' '.join(unknown)}: use {', '.join(PYTHONS)}.")
        print(make(given.pythons, given.output))
    except (BundleError, release.ReleaseError) as error:
        print(f"console-bundle: {error}", file=sys.stderr)
        return 1
    return 0


def make(pythons: Iterable[str], output: Path) -> Path:
    """Write the bundle for these versions of Python and for this machine's processor, and return its path."""
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    with tempfile.TemporaryDirectory(prefix="magi-bundle-") as name:
        folder = Path(name) / "bundle"
        (folder / "wheels").mkdir(parents=True)
        build_collection(folder)
        wheel = build_wheel(folder / "wheels")
        exported = run(UV, "export", "--quiet", "--frozen", "--only-group", "console", *NO_COMMENTS)
        for python in pythons:
            lines = requirements_for(exported, python)
            requirements = folder / f"requirements-{python}.txt"
            requirements.write_text("".join(f"{line}\n" for line in lines))
            download(requirements, python, folder / "wheels")
            own = f"magi-llama-console=={version} --hash=sha256:{sha256(wheel)}"
            requirements.write_text("".join(f"{line}\n" for line in [*lines, own]))
        described = {"schema_version": 1, "version": version, "machine": platform.machine(), "pythons": [*pythons]}
        (folder / "bundle.json").write_text(json.dumps(described, indent=2) + "\n")
        return write_tar(folder, output / f"magi-llama-console-{version}.tar")


NO_COMMENTS = ("--no-emit-workspace", "--no-header", "--no-annotate")


def build_collection(folder: Path) -> None:
    """Build the collection's artifact as a release does, with fixed times."""
    artifact = release.build(ROOT, {}, folder)
    with tempfile.TemporaryDirectory(prefix="magi-bundle-") as name:
        with tarfile.open(artifact) as archive:
            archive.extractall(name, filter="data")
        # gzip without a time.
        with tarfile.open(artifact, "w:gz", compresslevel=6) as archive:
            add_tree(archive, Path(name))
    data = bytearray(artifact.read_bytes())
    data[4:8] = bytes(4)
    artifact.write_bytes(data)


def build_wheel(wheels: Path) -> Path:
    run(UV, "build", "--quiet", "--wheel", "--offline", "--out-dir", wheels, ROOT / "console")
    (wheels / ".gitignore").unlink(missing_ok=True)
    [wheel] = wheels.glob("magi_llama_console-*.whl")
    return wheel


def requirements_for(exported: str, python: str) -> list[str]:
    """The packages of an export by uv that a version of Python needs, each with its hashes, one in each line."""
    needed = []
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for line in re.sub(r"\\\n", " ", exported).splitlines():
        text, *hashes = line.split("--hash=")
        requirement = Requirement(text.strip())
        if requirement.marker is None or requirement.marker.evaluate({**environment, **CPYTHON_ON_LINUX}):
            needed.append(f"{requirement.name}{requirement.specifier} " + " ".join(f"--hash={one}" for one in hashes))
    return needed


CPYTHON_ON_LINUX = {
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_machine": platform.machine(),
}


def download(requirements: Path, python: str, wheels: Path) -> None:
    tags = [f"--platform={one.format(machine=platform.machine())}" for one in PLATFORMS]
    run(
        *(ROOT / ".cache/uv/bin/python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:", f"--python-version={python}", *tags),
        *("--dest", wheels, "--requirement", requirements),
    )


def write_tar(folder: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with tarfile.open(staged, "w") as archive:
        add_tree(archive, folder)
    staged.replace(path)
    return path


def add_tree(archive: tarfile.TarFile, folder: Path) -> None:
    """Add a folder's files in a fixed order, with fixed owners and times."""
    for path in sorted(folder.rglob("*")):
        archive.add(path, str(path.relative_to(folder)), recursive=False, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = SOURCE_DATE
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(program: Path, *arguments: Any) -> str:
    """Run a program in the checkout and return what it printed. Raises BundleError with what it said."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(SOURCE_DATE)}
    done = subprocess.run(
        [program, *map(str, arguments)], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise BundleError(f"{program.name} {arguments[0]} has failed:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
