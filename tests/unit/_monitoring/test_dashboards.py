# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboards are those that tools/dashboards.py writes. tests/monitoring evaluates their queries."""

from __future__ import annotations

import json

from dashboards import dashboards
from support.monitoring import DASHBOARDS


def test_dashboards_are_current() -> None:
    """Write them with make dashboards."""
    assert {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")} == dashboards()


def test_dashboards_have_the_data_source_that_is_chosen_at_their_top() -> None:
    for text in dashboards().values():
        built = json.loads(text)
        assert built["templating"]["list"][0]["name"] == "datasource"
        assert {panel["datasource"]["uid"] for panel in built["panels"]} == {"${datasource}"}
