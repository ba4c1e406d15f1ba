# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ways to start the process of a job."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest
from magi_llama_console.jobs import launcher, runner

SYSTEMCTL = f"""#!/bin/sh
echo "$@" >> "$CALLS"
test "$3" != magi-job@denied.service || {{ echo "Access denied" >&2; exit 4; }}
name=${{3#magi-job@}}
setsid {sys.executable} -I {runner.__file__} "$JOBS/${{name%.service}}" &
"""


def prepare(folder: Path) -> Path:
    folder.mkdir()
    request = {"argv": ["/bin/sh", "-c", "exit 4"], "cwd": "/", "environment": {}, "pass_environment": []}
    (folder / "request.json").write_text(json.dumps(request))
    return folder


def ended(folder: Path) -> launcher.Ended:
    while (found := launcher.state(folder)) is None:
        time.sleep(0.01)
    return found


def test_session_is_one_of_its_own(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job")
    sessions = launcher.SessionLauncher()
    asyncio.run(sessions.start(folder))
    assert ended(folder).rc == 4
    process = json.loads((folder / "pid").read_text())
    # A second start of the same job does nothing.
    asyncio.run(sessions.start(folder))
    for started in sessions._started:
        started.wait()
    assert json.loads((folder / "pid").read_text()) == process


def test_unit_is_started_by_the_id_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("JOBS", str(tmp_path))
    units = launcher.UnitLauncher("magi-job@.service")
    folder = prepare(tmp_path / "20261127-180000-ab")
    asyncio.run(units.start(folder))
    assert ended(folder).rc == 4
    assert (tmp_path / "calls").read_text() == "start --no-ask-password magi-job@20261127-180000-ab.service\n"
    with pytest.raises(launcher.LaunchError, match=r"magi-job@denied\.service: Access denied"):
        asyncio.run(units.start(prepare(tmp_path / "denied")))
