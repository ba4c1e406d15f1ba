# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever happens to a model's file, a working server goes on; one that lost its supervisor gets a new one."""

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


def test_a_broken_model_file_stops_no_server_and_a_new_one_restarts_its_own(bed: Bed, model: Path) -> None:
    before = bed.pids()
    model.unlink()
    gone = bed.run("site")
    gone.expect("0 launched, 2 ready")
    gone.expect(f"{Q4}: {model} is gone. The running server is left alone")
    assert bed.pids() == before

    # A download that has just begun. (Writing into the very file that a server has mapped would end the server.)
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


def test_servers_whose_supervisord_died_get_a_new_one(bed: Bed) -> None:
    daemon, before = bed.supervisord(), bed.pids()
    os.kill(daemon, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(process.ppid == daemon for process in bed.processes().values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # They still serve, so nothing is lost …
    assert bed.pids() == before
    bed.wait_ready()
    # … and the next run says why it starts them anew.
    healed = bed.run("site")
    healed.expect("unsupervised: supervisord is not running")
    assert {process.ppid for process in bed.processes().values()} == {bed.supervisord()}
    assert not set(bed.pids().values()) & set(before.values())
