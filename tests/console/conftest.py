# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consoles that run as processes of their own, with tokens for both roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.console import RunningConsole


@pytest.fixture
def console(tmp_path: Path) -> Iterator[RunningConsole]:
    """A console with an inventory of one host that runs nothing."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("models: {hosts: {node1: {ansible_connection: local}}}\n")
    with RunningConsole(inventory, tmp_path / "console") as running:
        yield running
