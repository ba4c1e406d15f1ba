# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the bundle for a controller without a network: all that it installs, in one file. Run with `make bundle`.

The bundle, an uncompressed tar with one folder, holds

    install.sh                   installs it: sh install.sh FOLDER
    SHA256SUMS                   of all other files
    bundle.json                  {"schema_version": 1, "version": "0.1.0", "machine": "x86_64", "pythons": ["3.13"]}
    magi-llama-0.1.0.tar.gz      the collection
    requirements-3.13.txt        for each Python: ansible-core and what else a controller needs, with hashes
    wheels/*.whl                 these packages
    llama-server/                an archive of llama-server for method release, if one is given
    models/                      the manifest of the models and its signature, if one is given

The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import release
import yaml
from console_bundle import (
    NO_COMMENTS,
    PYTHONS,
    ROOT,
    UV,
    BundleError,
    build_collection,
    download,
    requirements_for,
    run,
    sha256,
    write_tar,
)

INSTALLER = ROOT / "tools/bundle_install.sh"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Make the bundle for a controller without a network.")
    parser.add_argument("pythons", nargs="*", default=PYTHONS, help="versions of Python, such as 3.13; default: all")
    parser.add_argument("--archive", type=Path, help="release archive of llama-server, a tar")
    parser.add_argument("--manifest", type=Path, help="models.lock.yml; its signature next to it is taken too")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder of the bundle")
    given = parser.parse_args(arguments)
    try:
        if unknown := sorted(set(given.pythons) - set(PYTHONS)):
            raise BundleError(f"PYTHONS={' '.join(unknown)}: use {', '.join(PYTHONS)}.")
        check_archive(given.archive)
        check_manifest(given.manifest)
        print(make(given.pythons, given.output, given.archive, given.manifest))
    except (BundleError, release.ReleaseError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    if given.archive is None:
        print("without llama-server: name its release archive with LLAMA_ARCHIVE, or install it on the hosts otherwise")
    return 0


def check_archive(path: Path | None) -> None:
    """Raise BundleError for an archive that the hosts could not install from."""
    if path is None:
        return
    try:
        with tarfile.open(path) as archive:
            names = {Path(member.name).name for member in archive if member.isfile()}
    except (OSError, tarfile.TarError) as error:
        raise BundleError(f"LLAMA_ARCHIVE={path} is not a readable tar archive: {error}.") from error
    if "llama-server" not in names:
        raise BundleError(f"LLAMA_ARCHIVE={path} has no file llama-server: take a release archive of llama.cpp.")


def check_manifest(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise BundleError(f"MANIFEST={path} does not exist: write it with manifest.yml.")


def make(pythons: Sequence[str], output: Path, archive: Path | None = None, manifest: Path | None = None) -> Path:
    """Write the bundle for these versions of Python and for this machine's processor, and return its path."""
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    name = f"magi-llama-{version}-bundle"
    with tempfile.TemporaryDirectory(prefix="magi-bundle-") as temporary:
        top = Path(temporary) / "tar"
        folder = top / name
        (folder / "wheels").mkdir(parents=True)
        build_collection(folder)
        exported = run(UV, "export", "--quiet", "--frozen", "--only-group", "controller", *NO_COMMENTS)
        for python in pythons:
            requirements = folder / f"requirements-{python}.txt"
            requirements.write_text("".join(f"{line}\n" for line in requirements_for(exported, python)))
            download(requirements, python, folder / "wheels")
        if archive is not None:
            add(folder / "llama-server", archive)
        if manifest is not None:
            add(folder / "models", manifest, Path(f"{manifest}.minisig"))
        described = {"schema_version": 1, "version": version, "machine": platform.machine(), "pythons": [*pythons]}
        (folder / "bundle.json").write_text(json.dumps(described, indent=2) + "\n")
        shutil.copy(INSTALLER, folder / "install.sh")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = "".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files)
        (folder / "SHA256SUMS").write_text(sums)
        return write_tar(top, output / f"{name}.tar")


def add(folder: Path, *files: Path) -> None:
    """Copy those of the files that exist."""
    folder.mkdir()
    for path in files:
        if path.is_file():
            shutil.copy(path, folder / path.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
