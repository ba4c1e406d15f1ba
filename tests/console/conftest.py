# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consoles that run as processes of their own, with tokens for both roles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.console import RunningConsole

HOSTS = ("node1", "node2", "node3")


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., None]:
    """fake(events=…, seconds=…, rc=…, wait=…, ignore=…) says what the runs that start from now on do."""

    def describe(**options: object) -> None:
        (tmp_path / "fake.json").write_text(json.dumps(options))

    describe()
    return describe


@pytest.fixture
def console(tmp_path: Path, fake: Callable[..., None]) -> Iterator[RunningConsole]:
    """A console with an inventory of three hosts, whose runs of playbooks are those of support/fake_playbook.py."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ansible-inventory").symlink_to(Path(sys.executable).with_name("ansible-inventory"))
    run = programs / "ansible-playbook"
    script = Path(__file__).parents[1] / "support/fake_playbook.py"
    run.write_text(f'#!/bin/sh\nexec {sys.executable} -S {script} "$@"\n')
    run.chmod(0o755)
    inventory = tmp_path / "hosts.yml"
    hosts = {name: {"ansible_connection": "local"} for name in HOSTS}
    inventory.write_text(json.dumps({"models": {"hosts": hosts}, "first": {"hosts": {"node1": {}}}}))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/mine.yml").write_text("enabled_models: [{tier: Q4}]\n")
    arguments = ("--ansible-bin", str(programs), "--pass-environment", "FAKE_PLAYBOOK", "--no-watch")
    environment = {"FAKE_PLAYBOOK": str(tmp_path / "fake.json"), "SECRET_OF_THE_CONSOLE": "s3cret"}
    with RunningConsole(inventory, tmp_path / "console", arguments=arguments, environment=environment) as running:
        yield running
