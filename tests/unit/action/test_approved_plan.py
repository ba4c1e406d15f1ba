# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""approved_plan: the plans of all hosts against what apply names, and what of that is read before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import result_document, to_text
from ansible_collections.magi.llama.plugins.module_utils._plan.document import PLAN
from ansible_collections.magi.llama.plugins.plugin_utils.approved import read_approved
from ansible_collections.magi.llama.plugins.plugin_utils.host_results import host_result

CONFIGS = {"/state/supervisor/conf.d/a.conf": "0" * 64}


def plan(action: str = "keep", reason: str = "runs as planned") -> dict[str, Any]:
    server = {
        **{"name": "a", "model_id": "a", "port": 8080, "argv": ["llama-server"], "action": action, "reason": reason},
        "env": {"MAGI_LLAMA_RUNTIME": "r"},
    }
    parts = {"profile": "p", "start": {}, "servers": [server], "memory": {"ram_bytes": 1}, "warnings": []}
    return PLAN.stamp(parts)


def host(name: str, made: dict[str, Any]) -> dict[str, Any]:
    """Variables of a host whose plan was made."""
    return {
        "inventory_hostname": name,
        "__servers_planned": {"ansible_facts": {"llama_plan": made}},
        "__servers_configs": {"configs": CONFIGS},
    }


def compared(run_action: Any, apply: Any, hosts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    more = {"hostvars": hosts, "ansible_play_hosts_all": list(hosts)}
    result: dict[str, Any] = run_action("approved_plan", {"apply": apply}, **more).result
    return result


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """The document of a plan of two hosts, as plan.yml writes it."""
    hosts = {name: host_result("plan", host(name, plan())) for name in ("one", "two")}
    path = tmp_path / "plan.json"
    path.write_text(to_text(result_document("plan", hosts)))
    return path


def test_unchanged_hosts_match_hash_and_document(run_action: Any, document: Path) -> None:
    hosts = {name: host(name, plan()) for name in ("one", "two")}
    found = json.loads(document.read_text())["hash"]
    for given in (str(document), found, found[:16], found[:16].upper()):
        result = compared(run_action, given, hosts)
        assert (result["matches"], result["hash"], result["errors"]) == (True, found, {})


def test_changed_host_is_named_and_nothing_fails_yet(run_action: Any, document: Path) -> None:
    hosts = {"one": host("one", plan()), "two": host("two", plan("start", "not running"))}
    result = compared(run_action, str(document), hosts)
    assert result["matches"] is False
    assert result["errors"]["two"].splitlines()[1] == "  two: a: was to keep, is to start now, not running"
    assert "two differs" in result["errors"]["one"]


def test_host_that_failed_has_its_own_error(run_action: Any, document: Path) -> None:
    failed = {**host("two", plan()), "__playbook_failure": {"task": "Plan the servers", "error": "no memory"}}
    result = compared(run_action, str(document), {"one": host("one", plan()), "two": failed})
    assert (result["matches"], list(result["errors"]), result["hash"]) == (False, ["one"], None)


def test_host_whose_launch_configs_were_not_compared_has_no_plan(run_action: Any, document: Path) -> None:
    unfinished = {key: value for key, value in host("two", plan()).items() if key != "__servers_configs"}
    result = compared(run_action, str(document), {"one": host("one", plan()), "two": unfinished})
    assert (result["matches"], list(result["errors"])) == (False, ["one"])


def test_plan_that_changed_before_the_lock_was_taken_fails_the_host(run_action: Any) -> None:
    run_action("approved_plan", {"approved": plan(), "plan": plan()})
    with pytest.raises(AnsibleActionFail, match="a: was to keep, is to restart now, llama-server itself changed"):
        run_action("approved_plan", {"approved": plan(), "plan": plan("restart", "llama-server itself changed")})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "neither a hash (16 to 64 hexadecimal digits) nor a file on the controller with the document of"),
        ("no json", "cannot be read as the document of"),
        ("[]", "cannot be read as the document of"),
        (json.dumps({"schema_version": 99}), "cannot be read as the document of"),
        (to_text(result_document("status", {})), "is a document of"),
        (to_text(result_document("plan", {"a": {"hash": "0" * 64}})), "cannot be read as the document of"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AnsibleActionFail, match="apply") as caught:
        read_approved(str(path))
    assert says in str(caught.value)
