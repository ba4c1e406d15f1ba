# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""logs.yml on a host with supervisor's log files, and what it refuses before it reads one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all

from .test_results import UNREACHABLE, Fleet


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A host with two servers that have logged."""
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        fleet = Fleet(Path(folder))
        fleet.add("one")
        servers = [{"name": name, "model_id": name, "port": 1, "argv": ["/x"], "stop_timeout": 1} for name in "ab"]
        record = {"profile": "p", "service_manager": "supervisor", "start": None, "servers": servers}
        write_all(state_files(str(fleet.folder / "one"), record)[0])
        (fleet.folder / "one/log").mkdir()
        for name in "ab":
            text = "".join(f"{name} says {number}\n" for number in range(9)) + "\x1b[31mred {{ 7 * 7 }}\n"
            (fleet.folder / f"one/log/{name}.log").write_text(text)
        yield fleet


def test_last_lines_are_shown_and_cannot_command_the_terminal(fleet: Fleet) -> None:
    printed = fleet.printed("logs", "-e", "servers=a", "-e", "lines=3", "-e", "since=1h")
    shown = [line for line in printed.splitlines() if line.startswith(("a:", "  "))]
    assert shown == ["a: 3 lines", "  a says 7", "  a says 8", "  \\x1b[31mred {{ 7 * 7 }}"]
    printed = fleet.printed("logs", "-e", "servers=all")
    assert "a: 10 lines" in printed and "b: 10 lines" in printed and "changed=0" in printed


def test_wrong_values_are_refused_before_a_host_is_reached(fleet: Fleet) -> None:
    fleet.add("two", **UNREACHABLE)
    for arguments, says in {
        (): "logs needs the variable servers",
        (
            "-e",
            "servers=a",
            "-e",
            "since=yesterday",
        ): 'since is "yesterday": it is such as 10m, 2h, 3d or 2026-11-27T10:00.',
        ("-e", "servers=a", "-e", "lines=0"): 'lines is "0": it is a whole number, 1 or more.',
        ("-e", "servers=a", "-e", "lines=5001"): 'lines is "5001": it is a whole number, 5000 or less.',
    }.items():
        output = " ".join(fleet.run("logs", *arguments, code=2).split())
        assert says in output and "UNREACHABLE" not in output


def test_wrong_server_or_date_is_refused_before_a_log_is_read(fleet: Fleet) -> None:
    output = " ".join(fleet.run("logs", "-e", "servers=a,x", code=2).split())
    assert "No server x is deployed here; there are: a, b." in output and "a says" not in output
    output = " ".join(fleet.run("logs", "-e", "servers=a", "-e", "since=2026-13-01", code=2).split())
    assert 'since is "2026-13-01": it is a time before now' in output and "a says" not in output
