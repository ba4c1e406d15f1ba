# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running server survives changes of its model file; one that lost its supervisor gets a new one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.bed import MODELS, Bed

Q3, Q4 = "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"


@pytest.fixture
def model(bed: Bed) -> Path:
    return bed.models / "tiny-llama-Q4_K_M.gguf"


def test_model_file_broken_keeps_server_and_replaced_restarts_it(bed: Bed, model: Path) -> None:
    before = bed.pids()
    model.unlink()
    gone = bed.run("site")
    gone.expect("0 launched, 2 of 2 ready")
    gone.expect(f"{Q4}: {model} is gone. The running server is left alone")
    assert bed.pids() == before

    # A download that has just started. (Writing into a file that a server has mapped would crash the server.)
    model.write_bytes((MODELS / model.name).read_bytes()[:4096])
    broken = bed.run("site")
    broken.expect(f"{Q4}: {model} was rejected (truncated")
    broken.expect("The running server is left alone")
    assert bed.pids() == before

    shutil.copy(MODELS / model.name, bed.root / "new")
    os.replace(bed.root / "new", model)
    replaced = bed.run("site")
    replaced.expect("the model's file changed")
    after = bed.pids()
    assert after[Q4] != before[Q4]
    assert after[Q3] == before[Q3]


def test_servers_without_supervisord_are_restarted(bed: Bed) -> None:
    daemon, before = bed.supervisord(), bed.pids()
    os.kill(daemon, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(process.ppid == daemon for process in bed.processes().values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The servers still answer …
    assert bed.pids() == before
    bed.wait_ready()
    # … and the next run reports why it restarts them.
    repaired = bed.run("site")
    repaired.expect("unsupervised: supervisord is not running")
    assert {process.ppid for process in bed.processes().values()} == {bed.supervisord()}
    assert not set(bed.pids().values()) & set(before.values())
