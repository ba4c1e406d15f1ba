# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node of a test's own, made and removed by tests/nodes/nodes.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import reaper
from support.bed import PROJECT

COMMAND = (sys.executable, str(PROJECT / "tests/nodes/nodes.py"))


def nodes(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


@contextmanager
def one_node(bed: str, inventory: Path, *options: str) -> Iterator[None]:
    """One node of Debian testing in this bed, in this inventory. It is removed, even after SIGKILL.

    Skips the test where this machine cannot run nodes.
    """
    if nodes("check").returncode != 0:
        pytest.skip("this machine cannot run nodes")
    with reaper.cleanup_if_killed(*COMMAND, "down", "--name", bed):
        try:
            up = nodes("up", "--name", bed, "--inventory", str(inventory), *options, "forky")
            assert up.returncode == 0, up.stderr
            yield
        finally:
            nodes("down", "--name", bed)
