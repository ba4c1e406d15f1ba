# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's monitoring programs for a test, unpacked by make .cache/bin/.monitoring, or installed."""

from __future__ import annotations

import shutil

import pytest
from support.runs import ROOT

RULES = ROOT / "roles/monitoring/files/magi-llama.rules.yml"
DASHBOARDS = ROOT / "roles/monitoring/files/grafana"


def program(name: str) -> str:
    """The path of a program, and its name where it is missing: the tests that need it are skipped."""
    return shutil.which(name, path=f"{ROOT}/.cache/monitoring/bin:/usr/bin") or name


needs_prometheus = pytest.mark.skipif(
    "/" not in program("promtool"), reason="no Prometheus: run make .cache/bin/.monitoring"
)
