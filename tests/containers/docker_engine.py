# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Docker Engine of this checkout: unpacked from Debian's packages, with its own data, socket and no firewall rules.

    python3 docker_engine.py     unpack what is missing in .cache/docker

Nothing is installed on the machine. The daemon has no default network; those of Compose are bridges of their own, whose
containers reach each other and have published ports, but not the world.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nodes"))

import nodes
from support import reaper

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/docker"
UNPACKED = CACHE / "root"
# docker-cli is a package of its own from Debian 13 on, and a part of docker.io before.
ENGINE = ("docker.io", "containerd", "runc", "tini", "libdevmapper1.02.1", "docker-cli")
# Compose 2, which Debian has from this suite on; it is a static program.
COMPOSE, COMPOSE_SUITE = "docker-compose", "trixie"
START_SECONDS = 60.0


def lacks() -> str:
    """Why Docker Engine cannot run here, as a sentence; empty where it can."""
    if os.geteuid() != 0:
        return "Docker Engine needs root here: run the tests with sudo."
    if not nodes.is_debian():
        return "Docker Engine is unpacked from Debian's packages: this machine is not a Debian."
    if not shutil.which("mmdebstrap"):
        return "the images are made by mmdebstrap: apt-get install mmdebstrap"
    if not (UNPACKED / "usr/bin/docker-compose").exists():
        return "Docker Engine is not unpacked: make .cache/docker/.ready"
    return ""


def unpack() -> None:
    """Fetch the packages by apt, which checks their signatures, and unpack them. Raises BedError."""
    if os.geteuid() != 0 or not nodes.is_debian() or (UNPACKED / "usr/bin/docker-compose").exists():
        return
    with tempfile.TemporaryDirectory(prefix="magi-docker-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        run(["apt-get", "update", "-q"], folder)
        known = [one for one in ENGINE if candidate(one)]
        run(["apt-get", "download", "-q", *known], folder)
        run(["apt-get", *other_suite(folder), "update", "-q"], folder)
        run(["apt-get", *other_suite(folder), "download", "-q", COMPOSE], folder)
        staged = CACHE / "unfinished"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for package in sorted(folder.glob("*.deb")):
            run(["dpkg", "-x", str(package), str(staged)], folder)
        shutil.rmtree(UNPACKED, ignore_errors=True)
        staged.rename(UNPACKED)


def candidate(package: str) -> bool:
    shown = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False).stdout
    return "Candidate: " in shown and "Candidate: (none)" not in shown


def other_suite(folder: Path) -> list[str]:
    """apt's options for the suite of Compose, with lists of its own."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={nodes.KEYRING}] {nodes.mirror()} {COMPOSE_SUITE} main\n")
    options = [f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}/cache", f"Dir::Etc::sourcelist={sources}"]
    options += ["Dir::Etc::sourceparts=/dev/null", "Acquire::Check-Valid-Until=false"]
    return [word for option in options for word in ("-o", option)]


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise nodes.BedError(f"{' '.join(command[:2])} has failed:\n{(done.stdout + done.stderr).strip()[-600:]}")


def environment(socket: Path) -> dict[str, str]:
    """What docker and docker-compose need to find this engine."""
    libraries = ":".join(str(path) for path in UNPACKED.glob("*/lib/*-linux-gnu*")) or "/nonexistent"
    return {
        "PATH": f"{UNPACKED}/usr/bin:{UNPACKED}/usr/sbin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{libraries}:{UNPACKED}/lib/x86_64-linux-gnu",
        "DOCKER_HOST": f"unix://{socket}",
        "DOCKER_CONFIG": str(CACHE / "config"),
        "DOCKER_BUILDKIT": "0",
        "COMPOSE_DOCKER_CLI_BUILD": "0",
    }


@contextlib.contextmanager
def running() -> Iterator[dict[str, str]]:
    """The environment of a running engine; what it has built is kept for the next one."""
    # Not in .cache: the path of a socket is short.
    with reaper.temporary_folder("magi-dockerd-") as folder:
        variables = environment(folder / "docker.sock")
        command = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none", "--pidfile", f"{folder}/pid"]
        command += ["--data-root", f"{CACHE}/data", "--exec-root", f"{folder}/exec", "--host", variables["DOCKER_HOST"]]
        log = CACHE / "dockerd.log"
        with log.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **variables})
        try:
            deadline = time.monotonic() + START_SECONDS
            while subprocess.run(["docker", "info"], env=variables, capture_output=True, check=False).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise nodes.BedError(f"dockerd does not start:\n{log.read_text()[-1000:]}")
                time.sleep(0.2)
            yield variables
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    try:
        unpack()
    except nodes.BedError as error:
        print(f"Docker Engine for the tests: {error}", file=sys.stderr)
        sys.exit(1)
