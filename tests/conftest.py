# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tests may run side by side: each scenario, each file of unit tests, each other folder, which has one bed."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent.name
        group = item.nodeid if folder == "scenarios" else item.path.stem if folder == "unit" else folder
        item.add_marker(pytest.mark.xdist_group(group))
