# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host with two servers for all faults. It is repaired before each test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import reaper
from support.bed import Bed


@pytest.fixture(scope="session")
def deployed() -> Iterator[Bed]:
    # A short path, because a socket is in it.
    with (
        reaper.temporary_folder("magi-faults-") as folder,
        reaper.cleanup_if_killed("umount", "--quiet", "--lazy", folder),
    ):
        # Its own disk, so that a test can fill it.
        mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "-o", "size=64m,mode=0755", "tmpfs", folder)
        bed = Bed(folder)
        try:
            bed.run("site")
            yield bed
        finally:
            bed.remove()
            if mounted:
                _run("umount", "--lazy", folder)


def _run(*command: str | Path) -> bool:
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def bed(deployed: Bed) -> Bed:
    """Two healthy servers of the profile pair, without another test's run."""
    (deployed.state / "run.lock").unlink(missing_ok=True)
    status = deployed.status()
    if {name for name, server in status.items() if server["is_ready"]} != {"tiny-llama-q3_k_m", "tiny-llama-q4_k_m"}:
        deployed.run("site")
    return deployed
