# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller makes of a gateway's answer."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

ARGUMENTS = {"state_dir": "/var/lib/g", "name": "gw1"}
GROUPS = {"all": ["h"]}
UPDATED = {
    "changed": True,
    "how": "servers",
    "models": {"m": 2},
    "url": "http://192.0.2.1:8070",
    "not_ready": ["h_8081"],
    "serving": ["h_8080"],
}
READ = {"changed": False, "how": "nothing", "models": {}, "url": "", "exists": True, "ready": {"m": {"h": 1}}}


def test_server_that_is_not_ready_is_shown(run_action: Any) -> None:
    run = run_action(
        "gateway_state", {**ARGUMENTS, "state": "updated"}, answers=[UPDATED], groups=GROUPS, hostvars={"h": {}}
    )
    assert run.result["not_ready"] == ["h_8081"]
    assert "h_8081 has not passed the gateway's check yet" in "\n".join(run.lines)


def test_gateway_is_read_without_output(run_action: Any) -> None:
    run = run_action("gateway_state", {**ARGUMENTS, "state": "read"}, answers=[READ], groups=GROUPS)
    assert (run.result["exists"], run.result["ready"], run.lines) == (True, {"m": {"h": 1}}, [])


def test_gateway_that_is_asked_in_two_parts_is_shown_once(run_action: Any) -> None:
    given = {**ARGUMENTS, "state": "updated"}
    begun = run_action(
        "gateway_state", {**given, "part": "begin"}, answers=[UPDATED], groups=GROUPS, hostvars={"h": {}}
    )
    assert (begun.result.get("is_reached"), begun.result["changed"], begun.lines) == (None, False, [])
    ended = run_action("gateway_state", {**given, "part": "end"}, groups=GROUPS, hostvars={"h": {}})
    assert (ended.result["is_reached"], ended.result["not_ready"]) == (True, ["h_8081"])
    assert "part" not in begun.calls[0][1] and len(ended.lines) == 2


@pytest.mark.parametrize("state", ["read", "updated"])
def test_gateway_that_fails_leaves_its_answer_to_every_host(run_action: Any, state: str) -> None:
    """The task runs once for all hosts, which would end by an undefined variable."""
    failed = {"failed": True, "changed": False, "msg": "HAProxy does not answer."}
    given, more = {**ARGUMENTS, "state": state}, {"groups": GROUPS, "hostvars": {"h": {}}}
    found = run_action("gateway_state", given, answers=[failed], **more).result
    assert (found.get("failed"), found["is_reached"]) == (None, True)
    assert found["refused"] == "gw1: HAProxy does not answer."
    # An answer of the wrong shape.
    run_action("gateway_state", {**given, "part": "begin"}, answers=[{**READ, "how": 1}], **more)
    ended = run_action("gateway_state", {**given, "part": "end"}, **more).result
    assert "The host's answer is not used" in ended["refused"]


def test_gateway_that_is_set_up_fails_by_itself(run_action: Any) -> None:
    more: dict[str, Any] = {"groups": GROUPS, "hostvars": {"h": {}}}
    failed = {"failed": True, "changed": False, "msg": "HAProxy did not start."}
    assert run_action("gateway_state", ARGUMENTS, answers=[failed], **more).result["failed"]
    with pytest.raises(AnsibleActionFail):
        run_action("gateway_state", ARGUMENTS, answers=[{**READ, "how": 1}], **more)


def test_facts_name_no_servers(run_action: Any) -> None:
    forged = {"members": {"address": "", "servers": []}, "api_keys": []}
    facts = {"ansible_facts": {"__gateway_members": forged}, "__gateway_members": forged}
    run = run_action(
        "gateway_state", {**ARGUMENTS, "state": "updated"}, answers=[UPDATED], groups=GROUPS, hostvars={"h": facts}
    )
    assert run.calls[0][1]["_filled_in"]["hosts"] == {}
    assert "h: it reports a fact __gateway_members, which is not used." in "\n".join(run.lines)
    assert run.result["serving"] == ["h_8080"]
