# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the models of hosts that leave still run."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._deployment.remaining import remaining_models


def status(*servers: tuple[str, bool]) -> dict[str, Any]:
    return {"servers": [{"model_id": model, "is_ready": is_ready} for model, is_ready in servers]}


FLEET = {
    "one": status(("a", True), ("b", True), ("c", False)),
    "two": status(("a", True), ("a", True), ("d", True)),
    "three": status(("a", True), ("b", False)),
}


def test_models_that_no_other_host_has_ready_are_gone() -> None:
    found = remaining_models(FLEET, ["one"])
    assert found["stays"] == {"a": ["two", "three"]} and found["gone"] == ["b", "c"]
    assert found["text"].splitlines() == [
        "models of one that run elsewhere:",
        "      a: two, three",
        "      b: on no other host",
        "      c: on no other host",
    ]


def test_hosts_that_leave_together_do_not_count_for_each_other() -> None:
    assert remaining_models(FLEET, ["one", "two"])["stays"] == {"a": ["three"]}
    assert remaining_models(FLEET, list(FLEET))["gone"] == ["a", "b", "c", "d"]


def test_host_without_a_status_serves_nothing_and_loses_nothing() -> None:
    assert remaining_models({"two": FLEET["two"]}, ["one"]) == {
        **{"stays": {}, "gone": []},
        "text": "nothing is deployed there",
    }
