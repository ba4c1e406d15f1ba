# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Groups of tests that may run in parallel: each scenario, each unit test file, each other folder (it has one bed)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.pytest_coverage import pytest_terminal_summary
from support.pytest_reaper import pytest_configure, stop_servers_in_tmp_path

__all__ = ["pytest_configure", "pytest_terminal_summary", "stop_servers_in_tmp_path"]

TESTS = Path(__file__).parent


# Before xdist reads the groups: its hook may be registered after this file, and then runs first.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        group = {"scenarios": item.nodeid, "unit": str(item.path)}.get(folder, folder)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A file that leaves an event loop running (as playwright does while it is open) would fail the files after it."""
    if nextitem is None or nextitem.path != item.path:
        assert asyncio._get_running_loop() is None, f"{item.path.name} left an event loop running"
