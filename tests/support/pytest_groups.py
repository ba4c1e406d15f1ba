# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pytest plugin: which tests may run in parallel.

A group is each scenario, each file of unit tests, and each other folder, which has one bed. The mark xdist_group of
`--dist loadgroup` has no effect with pytest 9.2: xdist writes it into an attribute that pytest does not read any more,
so tests of one folder went to several processes.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


def group_of(nodeid: str) -> str:
    """The group of a test by the id that pytest gives it: "tests/faults/test_disk.py::test_full" is in "faults"."""
    path = nodeid.partition("::")[0]
    folder = path.split("/")[1]
    return {"scenarios": nodeid, "unit": path}.get(folder, folder)


class Groups(LoadScopeScheduling):
    """Gives whole groups to workers, in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    # Long groups come first, as they are listed in pyproject.toml; xdist would begin with those of many tests.
    config.option.loadscopereorder = False
    return Groups(config, log)
