# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The console starts, answers, and keeps its data folder to itself."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

from support.console import PROGRAM, RunningConsole


def test_health_without_token_answers(console: RunningConsole) -> None:
    answer = console.anonymous.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_unknown_path_is_a_problem_document(console: RunningConsole) -> None:
    answer = console.anonymous.get("/nowhere")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert set(answer.json()) == {"type", "title", "status", "detail", "fix", "nearest", "instance"}


def test_files_of_the_data_folder_are_private(console: RunningConsole) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [console.data, *console.data.iterdir()]}
    assert modes["console"] == 0o700
    assert {mode for name, mode in modes.items() if name != "console"} == {0o600}


def test_inventory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    command = [PROGRAM, "--inventory", str(tmp_path / "none"), "--data", str(tmp_path / "data")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "none: does not exist" in refused.stderr) == (2, True)
