# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The molecule scenarios, each as a test, so that they run in parallel with other tests and are counted."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import reaper

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# All other scenarios run on systemd nodes.
ON_THIS_HOST = "default"
# The longest scenario first: the others run in parallel with it.
SCENARIOS = sorted(
    (path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")),
    key=lambda name: (name not in ("faults", "upgrade"), name),
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="session")
def nodes() -> str:
    """The reason why this machine cannot run nodes; empty if it can, and the images are then built."""
    command = [sys.executable, ROOT / "tests/nodes/nodes.py", "image"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() or "nodes.py failed" if done.returncode else ""


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if name != ON_THIS_HOST and (lacks := request.getfixturevalue("nodes")):
        # A machine that cannot run nodes skips them; in CI this is an error.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacks)
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "NO_COLOR": "1",
        # Molecule's default folder is the same for all checkouts of one name, and its state there outlives a run.
        "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "ephemeral"),
    }
    if name == ON_THIS_HOST:
        reaper.watch(ROOT / ".cache/molecule" / name)
    # The bed has the scenario's name. molecule's destroy removes it, unless the run is killed.
    down = reaper.cleanup_if_killed(sys.executable, ROOT / "tests/nodes/nodes.py", "down", "--name", name)
    with log.open("w") as output, down if name != ON_THIS_HOST else contextlib.nullcontext():
        done = subprocess.run(
            [BIN / "molecule", "test", "--scenario-name", name],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    shown = COLOURS.sub("", log.read_text(errors="replace"))
    assert done.returncode == 0, f"molecule test --scenario-name {name}:\n{shown[-12000:]}"
