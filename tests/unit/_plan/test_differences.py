# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Warnings from outside the plan."""

from __future__ import annotations

from ansible_collections.magi.llama.plugins.module_utils._plan.differences import extra_warnings

PLAN = {"servers": [{"name": "a", "action": "keep"}, {"name": "b", "action": "stop"}]}


def test_unit_of_another_origin_is_named_with_what_stops_it() -> None:
    [warning] = extra_warnings(PLAN, [], [], ["x.service (/p)"])
    assert warning.startswith("The unit x.service (/p) runs a llama-server that this collection does not manage: ")
    assert warning.endswith("If it is not wanted: systemctl disable --now x.service.")
    assert extra_warnings(PLAN, [], []) == []


def test_variables_for_all_services_and_disabled_units_are_named() -> None:
    assert extra_warnings(PLAN, ["LLAMA_ARG_A", "LLAMA_ARG_B"], ["a", "b"]) == [
        "systemd sets LLAMA_ARG_A, LLAMA_ARG_B for every service; our servers do not get that.",
        "a: unit was disabled manually; re-enabled (without a restart).",
    ]
