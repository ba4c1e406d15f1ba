# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of a job: it runs once, has a clean environment, and ends its command step by step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from magi_llama_console.jobs import launcher, runner

WAIT = "import signal, sys, time; print('up', flush=True)\ntime.sleep(60)"
STUBBORN = "import signal\nfor one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, signal.SIG_IGN)\n" + WAIT


# As Ansible's workers: in a session of its own, and with children.
WORKER = "import os, subprocess, sys\nsubprocess.Popen(['sleep', '61'], start_new_session=True)\n" + STUBBORN


def start(folder: Path, code: str, *, steps: str = "") -> subprocess.Popen[bytes]:
    request = {"argv": [sys.executable, "-c", code], "cwd": "/", "environment": {"MAGI_RUN_ID": "x"}}
    (folder / "request.json").write_text(json.dumps({**request, "pass_environment": ["WANTED"]}))
    command = [sys.executable, "-I", runner.__file__, str(folder)]
    if steps:
        # The same with shorter waits.
        program = f"import sys; sys.path.insert(0, {str(Path(runner.__file__).parent)!r})\nimport runner, signal\n"
        program += f"from pathlib import Path\nrunner.STEPS = {steps}\nrunner.main(Path({str(folder)!r}))"
        command = [sys.executable, "-I", "-c", program]
    return subprocess.Popen(command, env={"PATH": "/bin", "WANTED": "1", "LC_ALL": "C", "SECRET": "2"})


def rc(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "rc").read_text())
    return found


def wait_for(folder: Path, text: str) -> None:
    while not (folder / "output.log").exists() or text not in (folder / "output.log").read_text():
        time.sleep(0.01)


def test_exit_status_output_and_environment(tmp_path: Path) -> None:
    code = "import os, sys; print(sorted(os.environ)); sys.exit(3)"
    assert start(tmp_path, code).wait() == 3
    assert (rc(tmp_path)["rc"], rc(tmp_path)["cancelled"]) == (3, False)
    assert (tmp_path / "output.log").read_text() == "['LC_ALL', 'MAGI_RUN_ID', 'PATH', 'WANTED']\n"
    assert launcher.state(tmp_path) == launcher.Ended(3, False, rc(tmp_path)["ended_at"])


def test_second_process_of_a_job_does_nothing(tmp_path: Path) -> None:
    start(tmp_path, "print('once')").wait()
    assert start(tmp_path, "print('once')").wait() == 75
    assert (tmp_path / "output.log").read_text() == "once\n"


def test_command_that_cannot_start_is_named(tmp_path: Path) -> None:
    request = {"argv": ["/nowhere/ansible-playbook"], "cwd": "/", "environment": {}, "pass_environment": []}
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert subprocess.run([sys.executable, "-I", runner.__file__, str(tmp_path)], check=False).returncode == 127
    assert rc(tmp_path)["rc"] == 127
    assert "/nowhere/ansible-playbook cannot be started" in (tmp_path / "output.log").read_text()


def test_cancellation_interrupts_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, WAIT)
    wait_for(tmp_path, "up")
    assert launcher.state(tmp_path) is None
    launcher.cancel(tmp_path)
    process.wait()
    assert (rc(tmp_path)["rc"], rc(tmp_path)["cancelled"]) == (128 + signal.SIGINT, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stubborn_command_is_killed_at_last(tmp_path: Path, number: int) -> None:
    steps = "((signal.SIGINT, 0.1), (signal.SIGTERM, 0.1), (signal.SIGKILL, None))"
    process = start(tmp_path, WORKER, steps=steps)
    wait_for(tmp_path, "up")
    below = children(children(process.pid)[0])
    assert len(below) == 1
    process.send_signal(number)
    process.wait()
    assert (rc(tmp_path)["rc"], rc(tmp_path)["cancelled"]) == (128 + signal.SIGKILL, True)
    while Path(f"/proc/{below[0]}").exists() and "State:\tZ" not in Path(f"/proc/{below[0]}/status").read_text():
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_steps_of_a_cancellation() -> None:
    assert runner.STEPS == ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, None))


def test_command_of_a_killed_runner_counts_as_running_until_it_is_cancelled(tmp_path: Path) -> None:
    code = "import time; print('up', flush=True)\ntime.sleep(60)"
    command = start_in_session(tmp_path, code)
    wait_for(tmp_path, "up")
    os.kill(json.loads((tmp_path / "pid").read_text())["pid"], signal.SIGKILL)
    command.wait()
    assert launcher.state(tmp_path) is None
    launcher.cancel(tmp_path)
    while launcher.state(tmp_path) is None:
        time.sleep(0.01)
    assert launcher.state(tmp_path) == launcher.Ended(None)


def start_in_session(folder: Path, code: str) -> subprocess.Popen[bytes]:
    request = {"argv": [sys.executable, "-c", code], "cwd": "/", "environment": {}, "pass_environment": []}
    (folder / "request.json").write_text(json.dumps(request))
    return subprocess.Popen([sys.executable, "-I", runner.__file__, str(folder)], start_new_session=True)


def test_process_with_the_same_pid_is_not_taken_for_the_job(tmp_path: Path) -> None:
    own = runner.identity(os.getpid())
    assert launcher.is_alive(own)
    assert not launcher.is_alive({**own, "started": own["started"] - 1})
    assert not launcher.is_alive({**own, "boot_id": "another boot"})
    (tmp_path / "pid").write_text(json.dumps({**own, "boot_id": "another boot"}))
    assert launcher.state(tmp_path) == launcher.Ended(None)
