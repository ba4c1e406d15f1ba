# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pytest plugin: a test run stops everything that it started."""

from __future__ import annotations

import pytest

from . import reaper


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist are part of their controller's run.
    if not hasattr(config, "workerinput"):
        reaper.begin()


@pytest.fixture(scope="session", autouse=True)
def stop_servers_in_tmp_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    reaper.watch(tmp_path_factory.getbasetemp())
