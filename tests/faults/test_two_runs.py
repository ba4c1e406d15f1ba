# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs at once on one host: the second waits or fails and names the first; a dead run blocks nothing."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import Run, acquire, holder, release
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run
from support.bed import ALL, Bed


def other_run(**changes: object) -> Run:
    """A run of another user, on a controller that cannot be checked from here."""
    return Run(
        **{
            "id": "elsewhere.1/4711/1",
            "controller": "ci-7.example.org",
            "user": "anna",
            "pid": 4711,
            "playbook": "rollout.yml",
            **changes,
        }
    )


def test_second_run_waits_or_fails_without_disturbing_first(bed: Bed) -> None:
    state = str(bed.state)
    assert acquire(state, other_run()) is None
    pids = bed.pids()
    # A playbook that only reads needs no lock.
    bed.run("site", "--check", "-e", "profile=other")

    refused = bed.run("restart", *ALL, code=2)
    refused.expect("rollout.yml by anna on ci-7.example.org (pid 4711")
    refused.expect("Nothing was changed")
    assert bed.pids() == pids
    assert holder(state) is not None, "a refused run must not release another run's lock"

    waiting = bed.start("restart", "-e", "servers_lock_wait=60", "-e", "servers=tiny-llama-q3_k_m")
    assert waiting.stdout is not None
    for line in waiting.stdout:
        if "waiting for another run on this host: rollout.yml by anna" in line:
            break
    assert bed.pids() == pids
    release(state, other_run().id)
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, output
    assert bed.pids()["tiny-llama-q3_k_m"] != pids["tiny-llama-q3_k_m"]
    assert bed.pids()["tiny-llama-q4_k_m"] == pids["tiny-llama-q4_k_m"]
    assert holder(state) is None


def test_lock_of_killed_run_on_same_controller_is_free(bed: Bed) -> None:
    state = str(bed.state)
    first = bed.start("restart", *ALL)
    while holder(state) is None:
        assert first.poll() is None, "it exited without a lock"
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    held = holder(state)
    assert held is not None and held.run.pid == first.pid
    assert (held.run.playbook, held.run.user) == ("restart.yml", getpass.getuser())
    assert held.run.controller == socket.gethostname()
    bed.run("start", *ALL)
    assert holder(state) is None
    bed.wait_ready()


def test_failed_run_releases_lock(bed: Bed) -> None:
    failed = bed.run("restart", "-e", "servers=unknown", code=2)
    failed.expect("No server unknown is deployed here")
    assert holder(str(bed.state)) is None


def test_lock_of_other_controller_is_held_until_expiry_or_takeover(tmp_path: Path) -> None:
    state = str(tmp_path)
    mine = Run(**this_run("h"))
    assert acquire(state, other_run(), lease=0.05) is None
    time.sleep(0.06)
    assert acquire(state, mine) is None
    held = acquire(state, other_run())
    assert held is not None and held.run.id == mine.id
    assert acquire(state, other_run(), dead=mine.id) is None
    assert not release(state, mine.id)
    assert release(state, other_run().id)
    assert holder(state) is None


@pytest.mark.parametrize("text", ["", "{", '{"id": "x"}', "\0" * 100])
def test_damaged_lock_is_free(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.lock").write_text(text)
    assert acquire(str(tmp_path), other_run()) is None
    held = holder(str(tmp_path))
    assert held is not None and held.run.controller == "ci-7.example.org"


def test_lock_after_host_restart_is_free(tmp_path: Path) -> None:
    def proc(name: str, boot: str, first: int) -> str:
        root = tmp_path / name
        (root / "sys/kernel/random").mkdir(parents=True)
        (root / "sys/kernel/random/boot_id").write_text(f"{boot}\n")
        (root / "1").mkdir()
        (root / "1/stat").write_text(f"1 (init) S {' '.join('0' * 18)} {first}\n")
        (root / "uptime").write_text("100.0 1.0\n")
        return str(root)

    before = proc("before", "a", 5)
    assert acquire(str(tmp_path), other_run(), proc=before) is None
    assert holder(str(tmp_path), proc=before) is not None
    # Another boot of the machine, and a restart of a container during the same boot.
    assert holder(str(tmp_path), proc=proc("rebooted", "b", 5)) is None
    assert holder(str(tmp_path), proc=proc("restarted", "a", 9)) is None


def test_step_of_run_without_lock_is_refused(bed: Bed) -> None:
    state = str(bed.state)
    acquire(state, other_run())
    pids = bed.pids()
    answer = bed.module("server_state", state_dir=state, state="restarted", _filled_in={"run_id": "mine"})
    assert answer["failed"] and "Another run is changing this host: rollout.yml by anna" in answer["msg"]
    release(state, other_run().id)
    assert bed.pids() == pids
