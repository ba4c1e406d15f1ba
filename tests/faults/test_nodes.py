# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nodes: starting them again changes nothing, and removing them leaves nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import checkout, reaper
from support.bed import PROJECT
from support.nodes import COMMAND, nodes

BED = "selftest"


@pytest.fixture
def inventory(tmp_path: Path) -> Iterator[Path]:
    if nodes("check").returncode != 0:
        pytest.skip("this machine cannot run nodes")
    with reaper.cleanup_if_killed(*COMMAND, "down", "--name", BED):
        yield tmp_path / "nodes.yml"
        nodes("down", "--name", BED)


def labelled() -> list[str]:
    """Podman's objects of the bed: nodes, networks and volumes."""
    found = []
    for command in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        filters = [f"--filter=label=magi.llama.{label}" for label in (f"bed={BED}", f"checkout={checkout.ROOT}")]
        listing = ["podman", *command, *filters, "--format", "json"]
        found += json.loads(subprocess.run(listing, capture_output=True, text=True, check=True).stdout or "[]") or []
    return [str(entry.get("Names") or entry.get("name") or entry.get("Name")) for entry in found]


def test_bed_is_idempotent_and_removed_completely(inventory: Path) -> None:
    up = ["up", "--name", BED, "--inventory", str(inventory), "forky"]
    first = nodes(*up)
    assert first.returncode == 0, first.stderr
    assert "1 nodes, changed=1," in first.stdout + first.stderr
    assert len(labelled()) == 2
    written = inventory.read_text()

    again = nodes(*up)
    assert "1 nodes, changed=0," in again.stdout + again.stderr
    assert inventory.read_text() == written

    down = nodes("down", "--name", BED)
    assert down.returncode == 0, down.stderr
    assert labelled() == []
    assert not inventory.exists()
    assert not (PROJECT / ".cache/nodes" / BED).exists()
    assert "changed=0," in nodes("down", "--name", BED).stdout
