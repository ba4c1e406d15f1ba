# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The console starts, answers, and keeps its data folder to itself."""

from __future__ import annotations

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
    console.wait(console.submit("status")["id"])
    files = [console.data, *console.data.rglob("*")]
    assert {"pid", "rc", "request.json", "vars.json", "output.log", "tokens.json"} <= {path.name for path in files}
    open_to_others = {path: oct(path.stat().st_mode) for path in files if path.stat().st_mode & 0o077}
    assert open_to_others == {}


def test_inventory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    command = [PROGRAM, "--inventory", str(tmp_path / "none"), "--data", str(tmp_path / "data")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "none: does not exist" in refused.stderr) == (2, True)
