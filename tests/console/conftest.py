# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Consoles that run as processes of their own, with tokens for both roles."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import reaper
from support.bed import Bed
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
    with fake_console(tmp_path) as running:
        yield running


def fake_console(tmp_path: Path, *more: str) -> RunningConsole:
    """What the fixture console runs, with more arguments."""
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
    return RunningConsole(inventory, tmp_path / "console", arguments=(*arguments, *more), environment=environment)


@dataclass
class Live:
    """A console whose host is this machine, with real servers of tiny models under supervisor."""

    console: RunningConsole
    bed: Bed

    def wait_for(self, path: str, is_so: Callable[[Any], bool], seconds: float = 90.0) -> Any:
        """Ask until an answer is so; returns it."""
        deadline = time.monotonic() + seconds
        while not is_so(answer := self.console.read.get(path).json()):
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
        return answer


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """The profile pair is deployed, by the console itself."""
    with reaper.temporary_folder("magi-console-") as folder:
        bed = Bed(folder / "bed")
        console = RunningConsole(bed.inventory, folder / "console")
        try:
            with console:
                answer = console.operate.post("/api/models/start", timeout=180)
                assert (answer.status_code, len(answer.json()["started"])) == (200, 2), answer.text
                yield Live(console, bed)
        finally:
            bed.run("teardown")
