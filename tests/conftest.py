# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests have in common."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from support.pytest_coverage import pytest_terminal_summary
from support.pytest_groups import pytest_xdist_make_scheduler
from support.pytest_reaper import pytest_configure, stop_servers_in_tmp_path

__all__ = ["pytest_configure", "pytest_terminal_summary", "pytest_xdist_make_scheduler", "stop_servers_in_tmp_path"]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A file that leaves an event loop running (as playwright does while it is open) would fail the files after it."""
    if nextitem is None or nextitem.path != item.path:
        assert asyncio._get_running_loop() is None, f"{item.path.name} left an event loop running"


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test whose path is short: state folders with sockets in it have a limit of 72 bytes.

    With pytest's own, which has 30 characters of the test's name, it depends on how often pytest has been run.
    """
    return tmp_path_factory.mktemp(re.sub(r"\W", "_", request.node.name.removeprefix("test_"))[:12])
