# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller makes of a gateway's answer."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.action import gateway_state

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


HOLDER = {"id": "elsewhere/1/1", "text": "rollout.yml by ann", "seconds_left": 200.0}


def sent_with(run_action: Any, **entry: Any) -> tuple[dict[str, Any], str]:
    """What a gateway is sent of a host, and what is shown."""
    found = {"members": {"address": "", "servers": [{"name": "m"}]}, "api_keys": [], **entry}
    more: dict[str, Any] = {"groups": GROUPS, "hostvars": {"h": {"__gateway_members": found}}}
    run = run_action("gateway_state", {**ARGUMENTS, "state": "updated"}, answers=[UPDATED], **more)
    return run.calls[0][1]["_filled_in"], "\n".join(run.lines)


def test_servers_of_a_host_that_another_run_changes_are_left_to_it(run_action: Any, monkeypatch: Any) -> None:
    """It may drain one, which would get requests again."""
    sent, shown = sent_with(run_action, holder=HOLDER, is_locked=False)
    assert sent["hosts"] == {}
    assert "h: another run is changing it (rollout.yml by ann), and changes what the gateway knows of it." in shown
    monkeypatch.setattr(gateway_state, "has_ended", lambda holder: holder == HOLDER)
    sent, shown = sent_with(run_action, holder=HOLDER, is_locked=False)
    assert (sent["hosts"].keys(), "another run" in shown) == ({"h"}, False)


def test_gateway_learns_how_old_is_what_was_listed_without_the_lock(run_action: Any) -> None:
    sent, _shown = sent_with(run_action, holder=None, is_locked=False, listed_at=time.monotonic() - 60)
    assert 60 <= sent["ages"]["h"] < 90
    assert sent_with(run_action, holder=None, is_locked=True, listed_at=time.monotonic() - 60)[0]["ages"] == {}


def test_host_that_was_not_reached_is_named(run_action: Any) -> None:
    more: dict[str, Any] = {"groups": GROUPS, "hostvars": {"h": {"__gateway_members": {"unreachable": True}}}}
    run = run_action("gateway_state", {**ARGUMENTS, "state": "updated"}, answers=[UPDATED], **more)
    assert run.calls[0][1]["_filled_in"]["hosts"] == {}
    assert "h: it was not reached, so the gateway keeps what it knows of its servers." in "\n".join(run.lines)


def test_facts_name_no_servers(run_action: Any) -> None:
    forged = {"members": {"address": "", "servers": []}, "api_keys": []}
    facts = {"ansible_facts": {"__gateway_members": forged}, "__gateway_members": forged}
    run = run_action(
        "gateway_state", {**ARGUMENTS, "state": "updated"}, answers=[UPDATED], groups=GROUPS, hostvars={"h": facts}
    )
    assert run.calls[0][1]["_filled_in"]["hosts"] == {}
    assert "h: it reports a fact __gateway_members, which is not used." in "\n".join(run.lines)
    assert run.result["serving"] == ["h_8080"]
