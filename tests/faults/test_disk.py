# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A full or read-only disk: the error names the path, files keep their content, servers keep running."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import Run, acquire, holder, release, renew
from ansible_collections.magi.llama.plugins.module_utils._plan.document import PLAN
from support.bed import Bed

Q3, Q4 = "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"


def fill(path: Path) -> None:
    with pytest.raises(OSError) as error, path.open("wb", buffering=0) as stream:
        for size in (2**20, 4096, 1):
            while stream.write(b"\0" * size) == size:
                pass
    assert error.value.errno == errno.ENOSPC


@pytest.fixture
def full_disk(bed: Bed) -> Iterator[Bed]:
    if not os.path.ismount(bed.root):
        pytest.skip("file systems cannot be mounted here")
    filler = bed.root / "filler"
    fill(filler)
    try:
        yield bed
    finally:
        filler.unlink()


@pytest.fixture
def read_only_disk(bed: Bed) -> Iterator[Bed]:
    state = str(bed.state)
    if subprocess.run(["mount", "--bind", state, state], check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
    try:
        yield bed
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


def kept_files(bed: Bed) -> dict[str, bytes]:
    paths = [bed.registry, bed.state / "deployment.json", *(bed.state / "supervisor/conf.d").iterdir()]
    return {str(path): path.read_bytes() for path in paths}


def changed_plan(bed: Bed) -> dict[str, Any]:
    record = json.loads((bed.state / "deployment.json").read_text())["deployed"]
    servers = [
        {**server, "port": server["port"] + 9, "action": "restart", "reason": ""} for server in record["servers"]
    ]
    return PLAN.stamp({**record, "servers": servers, "memory": {}, "warnings": []})


def check_refusals(bed: Bed, why: str) -> None:
    before, pids = kept_files(bed), bed.pids()
    refused = bed.run("site", "-e", "profile=other", code=2)
    refused.expect(f"{bed.state}/run.lock could not be written: {why}. Nothing was changed")

    moved = bed.models / "renamed.gguf"
    os.rename(bed.models / "tiny-llama-Q2_K.gguf", moved)
    try:
        scan = bed.module("gguf_registry", scan_paths=[str(bed.models)], registry_path=str(bed.registry))
    finally:
        os.rename(moved, bed.models / "tiny-llama-Q2_K.gguf")
    assert scan["failed"] and f"The registry {bed.registry} cannot be written: {why}" in scan["msg"]

    arguments = {"service_manager": "supervisor", "state_dir": str(bed.state), "plan": changed_plan(bed)}
    configs = bed.module("launch_configs", **arguments)
    assert configs["failed"] and f"could not be written: {why}. Nothing was started or stopped" in configs["msg"]
    assert str(bed.state) in configs["msg"]

    assert kept_files(bed) == before
    assert not [path for path in bed.state.rglob("*") if ".tmp" in path.name]
    assert bed.pids() == pids
    bed.wait_ready()


def test_run_on_full_disk_is_refused(full_disk: Bed) -> None:
    check_refusals(full_disk, "No space left on device")


def test_run_on_read_only_disk_is_refused(read_only_disk: Bed) -> None:
    check_refusals(read_only_disk, "Read-only file system")


def test_servers_on_full_disk_start(full_disk: Bed) -> None:
    state = str(full_disk.state)
    os.kill(full_disk.pids()[Q4], 15)
    answer = full_disk.module("server_state", state_dir=state, actions={Q4: "restart"})
    assert not answer.get("failed"), answer
    full_disk.wait_ready()


def test_run_lock_on_full_disk_is_renewed_and_released(bed: Bed) -> None:
    state = str(bed.state)
    run = Run("a/1/1", "ctl", "anna", 1, "site.yml")
    assert acquire(state, run) is None
    filler = bed.root / "filler"
    if not os.path.ismount(bed.root):
        pytest.skip("file systems cannot be mounted here")
    fill(filler)
    try:
        renew(state, run.id)
        held = holder(state)
        assert held is not None and held.run.id == run.id
        assert release(state, run.id)
        assert holder(state) is None
    finally:
        filler.unlink()
