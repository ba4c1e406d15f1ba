# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller dies at any task of a run: the next run repairs the host, and a further one changes nothing.

A complete run records the state of the host at the start of each task. A run that is killed at any of several tasks
with the same state leaves the same behind, so a run is killed once for each state.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from support.bed import PROJECT, Bed

OTHER = {"pair": "other", "other": "pair"}
CALLBACK = {
    "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "tests/support/callbacks"),
    "ANSIBLE_CALLBACKS_ENABLED": "at_task",
}


def names(bed: Bed) -> list[str]:
    """The names of the ready servers."""
    return sorted(name for name, server in bed.status().items() if server["is_ready"])


def check_repaired(bed: Bed, profile: str) -> None:
    bed.run("site", "-e", f"profile={profile}").expect("2 of 2 ready")
    wanted = {"pair": ["tiny-llama-q3_k_m", "tiny-llama-q4_k_m"], "other": ["tiny-llama-q2_k", "tiny-llama-q3_k_m"]}
    assert names(bed) == wanted[profile]
    assert sorted(bed.pids()) == wanted[profile]
    again = bed.run("site", "-e", f"profile={profile}")
    assert again.changed == 0, again.output


def kill_at(bed: Bed, profile: str, number: int) -> None:
    killed = bed.start("site", "-e", f"profile={profile}", env={**CALLBACK, "MAGI_AT_TASK": str(number)})
    output, _ = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, output


def kill_while_servers_change(bed: Bed, profile: str, _: int) -> None:
    before = bed.pids()
    run = bed.start("site", "-e", f"profile={profile}")
    while bed.pids() == before:
        assert run.poll() is None
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def test_run_killed_at_any_task_is_repaired_by_next_run(bed: Bed, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    watch = {**CALLBACK, "MAGI_NOTES": str(notes), "MAGI_STATE": str(bed.state)}
    bed.run("site", "-e", "profile=other", env=watch)
    tasks = [json.loads(line) for line in notes.read_text().splitlines()]
    firsts: dict[str, int] = {}
    for number, (_name, state) in enumerate(tasks, start=1):
        firsts.setdefault(state, number)
    # The states: empty; launch configs written; servers started; readiness recorded.
    assert len(tasks) > 15 and 4 <= len(firsts) <= 6, tasks
    profile = "other"
    kills = [(kill_at, number) for number in firsts.values()]
    for kill, number in [*kills, (kill_while_servers_change, 0)]:
        profile = OTHER[profile]
        kill(bed, profile, number)
        check_repaired(bed, profile)
