# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many cores servers may use, from recorded /sys files."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.cores import usable_cores


class Sys:
    """The files of two nodes with two cores each, of two hardware threads: 0 and 4, 1 and 5, 2 and 6, 3 and 7."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for number in range(8):
            self.write(f"cpu/cpu{number}/topology/thread_siblings_list", f"{number % 4},{number % 4 + 4}\n")
        self.write("node/node0/cpulist", "0-1,4-5\n")
        self.write("node/node1/cpulist", "2-3,6-7\n")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cores(self, numa_mask: str = "", allowed: set[int] | None = None) -> int:
        folder = str(self.folder)
        return usable_cores(
            numa_mask,
            allowed=set(range(8)) if allowed is None else allowed,
            cpu=f"{folder}/cpu",
            node=f"{folder}/node",
            cgroup=f"{folder}/cgroup",
        )


@pytest.fixture
def sys_files(tmp_path: Path) -> Sys:
    return Sys(tmp_path)


@pytest.mark.parametrize(
    ("numa_mask", "allowed", "expected"),
    [
        pytest.param("", None, 4, id="two threads of a core count once"),
        pytest.param("", {0, 1}, 2, id="a processor mask"),
        pytest.param("", {0, 4}, 1, id="a mask of one core"),
        pytest.param("0", None, 2, id="one node"),
        pytest.param("0-1", None, 4, id="both nodes"),
        pytest.param("1", {0, 1, 2}, 1, id="node and mask"),
        pytest.param("7", None, 4, id="a node that is not there"),
    ],
)
def test_cores_of_masks(sys_files: Sys, numa_mask: str, allowed: set[int] | None, expected: int) -> None:
    assert sys_files.cores(numa_mask, allowed) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("800000 100000", 4), ("nonsense", 4), ("1 0", 4)],
)
def test_control_group_limits_cores(sys_files: Sys, limit: str, expected: int) -> None:
    sys_files.write("cgroup/cpu.max", limit + "\n")
    assert sys_files.cores() == expected


def test_old_control_groups_limit_cores(sys_files: Sys) -> None:
    sys_files.write("cgroup/cpu/cpu.cfs_quota_us", "300000\n")
    sys_files.write("cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert sys_files.cores() == 3


def test_this_machine_has_a_core() -> None:
    assert usable_cores() >= 1
