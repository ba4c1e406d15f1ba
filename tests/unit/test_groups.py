# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that share a bed run in one process, also with the versions of pytest and xdist that are installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.pytest_groups import group_of

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        (
            "tests/scenarios/test_scenarios.py::test_scenario[a@b]",
            "tests/scenarios/test_scenarios.py::test_scenario[a@b]",
        ),
        ("tests/unit/_core/test_pool.py::test_a", "tests/unit/_core/test_pool.py"),
        ("tests/console/browser/test_looks.py::test_a[::1]", "console"),
        ("tests/faults/test_disk.py::test_a", "faults"),
    ],
)
def test_group_of_a_test(nodeid: str, group: str) -> None:
    assert group_of(nodeid) == group


@pytest.mark.slow
def test_tests_of_one_file_run_in_one_process() -> None:
    """One group for each of two processes: many short tests, and one group is not handed to both."""
    files = [str(TESTS / "unit" / name) for name in ("_core/test_files.py", "_core/test_run_lock.py")]
    options = ["-n", "2", "--dist", "loadscope", "-vv", "-p", "no:cacheprovider", "-p", "no:cov"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    ran = set(re.findall(r"^\[(gw\d)\].* PASSED (\S+?)::", done.stdout, re.MULTILINE))
    assert sorted(path for _, path in ran) == ["tests/unit/_core/test_files.py", "tests/unit/_core/test_run_lock.py"], (
        done.stdout + done.stderr
    )
