# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The document that playbooks print."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._health.status import STATUS
from ansible_collections.magi.llama.plugins.module_utils._output import fleet
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import result_document, to_text
from ansible_collections.magi.llama.plugins.module_utils._output.rollout_summary import begin, summary
from ansible_collections.magi.llama.plugins.module_utils._plan.document import PLAN
from support.schemas import errors

EMPTY = {"total_servers": 0, "ready_servers": 0, "servers": []}
FAILED = {"task": None, "error": "no route"}
PROBE = {
    **{"name": "a", "port": 8080, "ok": True, "via": "controller"},
    **{"seconds": 0.1, "error": None, "own_fault": False},
}
PLANNED = {
    **{"name": "a", "model_id": "a", "display_name": "A", "tier": "Q4", "kind": "model", "port": 8080},
    **{"host": "0.0.0.0", "argv": ["llama-server", "--host", "0.0.0.0"], "action": "keep", "build": 11669},
    "memory": {"slot_context": 4096, "vram_bytes": 5},
}
LOCATED = fleet.located(
    {"servers": fleet.planned_servers({"profile": "p", "servers": [PLANNED]}, {})}, "gpu1", "10.0.0.1"
)


def test_result_begins_with_versions_and_ends_with_hosts() -> None:
    found = result_document("status", {"b": {"x": 1}, "a": {}})
    assert list(found) == ["schema_version", "collection_version", "kind", "hosts"]
    assert list(found["hosts"]) == ["b", "a"]


def test_result_of_plan_alone_has_a_hash() -> None:
    planned = {"a": {"hash": "1" * 64}}
    found = result_document("plan", planned)
    assert list(found) == ["schema_version", "collection_version", "kind", "hash", "hosts"]
    assert result_document("plan", {**planned, "b": FAILED})["hash"] is None
    empty = result_document("plan", {"b": FAILED})
    assert errors("result", empty) == []
    assert errors("result", {key: value for key, value in empty.items() if key != "hash"}) != []
    assert errors("result", {**result_document("status", {"b": FAILED}), "hash": None}) != []


def test_text_has_its_outer_braces_alone_on_their_lines() -> None:
    found = result_document("status", {"one": {"name": "\x1b[2Jü\n}\n{"}})
    lines = to_text(found).splitlines()
    assert [number for number, line in enumerate(lines) if line in ("{", "}")] == [0, len(lines) - 1]
    assert to_text(found).isascii()
    assert "\x1b" not in to_text(found)
    assert json.loads(to_text(found))["hosts"] == {"one": {"name": "\\x1b[2Jü\n}\n{"}}


def test_rollout_has_totals_before_hosts_by_name() -> None:
    found = summary({"gpu2": {**begin(), "state": "failed"}, "gpu1": begin()}, 2.0)
    assert list(found)[:3] == ["schema_version", "collection_version", "kind"]
    assert (found["kind"], found["failed"], found["untouched"], found["seconds"]) == ("rollout", 1, 1, 2.0)
    assert list(found["hosts"]) == ["gpu2", "gpu1"]
    assert found["hosts"]["gpu2"]["state"] == "failed"


def test_result_follows_its_schema() -> None:
    hosts = {"a": STATUS.stamp(EMPTY), "b": FAILED}
    assert errors("result", result_document("status", hosts)) == []
    assert len(errors("result", result_document("status", {"b": {"error": "no task"}}))) == 1
    assert len(errors("result", result_document("lock", hosts))) == 1


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("status", STATUS.stamp(EMPTY)),
        ("plan", PLAN.stamp({"profile": "p", "start": None, "servers": [], "memory": {}, "warnings": []})),
        ("site", {"profile": "p", "total_servers": 2, "ready_servers": 1, "actions": {"start": 2}}),
        ("site", {"profile": "p", "total_servers": 1, "ready_servers": 1, "actions": {}, **LOCATED}),
        ("site", {"profile": "p", "total_servers": None, "ready_servers": None, "actions": {}}),
        ("verify", {"total_servers": 1, "answered_servers": 1, "servers": [PROBE]}),
    ],
)
def test_part_of_a_host_is_that_of_its_kind_and_nothing_else(kind: str, part: dict[str, Any]) -> None:
    def wrong(host: dict[str, Any]) -> int:
        return len(errors("result", result_document(kind, {"a": host})))

    assert wrong(part) == wrong(FAILED) == wrong({**part, **FAILED}) == 0
    assert wrong({**part, "undocumented": 1}) == wrong({**part, **FAILED, "undocumented": 1}) == 1
    assert wrong({key: value for key, value in part.items() if key != "servers" and key != "actions"}) == 1
    if kind in ("status", "verify"):
        assert wrong({**part, "total_servers": "2"}) == 1
        assert errors("result", result_document("site", {"a": part})) != []
