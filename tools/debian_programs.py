# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpack programs of a Debian release without installing them, and without root: apt checks the signatures.

debian_programs.py SUITE FOLDER PACKAGE...    writes FOLDER/root, and FOLDER/bin with what starts each program
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ansible_collections.magi.llama.plugins.module_utils._runtime.providers.portable import (
    apt_configuration,
    find_mirror,
)
from ansible_collections.magi.llama.plugins.module_utils._runtime.requests import CLEAN_ENVIRONMENT, KEYRINGS

# Where the programs are that the tests start, and the libraries that are unpacked with them.
PROGRAMS = ("usr/bin/*", "usr/libexec/podman/quadlet")
LIBRARIES = "usr/lib/*-linux-gnu"


def main(suite: str, folder: Path, packages: list[str]) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("apt/state/lists/partial", "apt/cache/archives/partial", "apt/log", "root", "bin"):
        (folder / part).mkdir(parents=True)
    keyring = next((path for path in KEYRINGS if Path(path).exists()), None)
    mirror = find_mirror("/etc", codename())
    if keyring is None or mirror is None or not shutil.which("apt-get"):
        print("not a Debian machine with a mirror and a keyring: the programs are not fetched", file=sys.stderr)
        return 1
    apt = folder / "apt"
    host = run(["apt-config", "dump"], CLEAN_ENVIRONMENT)
    (apt / "apt.conf").write_text(apt_configuration(str(apt.absolute()), host))
    (apt / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror} {suite} main\n")
    environment = {**CLEAN_ENVIRONMENT, "APT_CONFIG": str((apt / "apt.conf").absolute())}
    run(["apt-get", "-q", "update"], environment)
    # Not what they depend on, unless it is named: most of these programs are static but for the C library.
    run(["apt-get", "-q", "download", *packages], environment, cwd=apt)
    for archive in sorted(apt.glob("*.deb")):
        run(["dpkg-deb", "-x", str(archive.absolute()), str((folder / "root").absolute())], environment)
    libraries = [str(path.absolute()) for path in (folder / "root").glob(LIBRARIES)]
    for program in sorted(path for pattern in PROGRAMS for path in (folder / "root").glob(pattern)):
        start = folder / "bin" / program.name
        start.write_text(f"#!/bin/sh\nLD_LIBRARY_PATH={':'.join(libraries)} exec '{program.absolute()}' \"$@\"\n")
        start.chmod(0o755)
    shutil.rmtree(apt)
    return 0


def codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME=")), "")


def run(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
