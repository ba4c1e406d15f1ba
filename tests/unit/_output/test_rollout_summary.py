# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The summary of a rollout's hosts."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.cli.playbook import PlaybookCLI
from ansible_collections.magi.llama.plugins.action import rollout as action
from ansible_collections.magi.llama.plugins.module_utils._output import rollout_summary

PLAN = {"servers": [{"action": "restart"}, {"action": "restart"}, {"action": "stop"}, {"action": "keep"}]}
SAME = {"servers": [{"action": "keep"}]}
HEALTH = {"servers": [{}, {}, {}], "ready": 3}
INITIAL = rollout_summary.begin()


@pytest.mark.parametrize(
    ("plan", "check", "health", "state", "ready"),
    [
        (PLAN, False, HEALTH, "updated", 3),
        (SAME, False, HEALTH, "unchanged", 3),
        # Health checks are skipped in check mode.
        (PLAN, True, {"skipped": True}, "planned", None),
        (SAME, True, {}, "unchanged", None),
    ],
)
def test_host_healthy_is_reported(plan, check, health, state, ready):
    host = rollout_summary.updated(INITIAL, plan, health, check)
    assert (host["state"], host["ready_servers"]) == (state, ready)
    assert host["actions"] == ({"restart": 2, "stop": 1} if plan is PLAN else {})


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ({"a": "r2", "b": "r2", "d": "r0"}, []),
        # The connection was lost before a was restarted, b started and c stopped.
        ({"a": "r1", "d": "r0"}, ["a", "b"]),
        ({"a": "r2", "b": "r2", "c": "r1", "d": "r0"}, ["c"]),
        # Kept servers are covered by their health.
        ({"a": "r2", "b": "r2"}, []),
    ],
)
def test_servers_differing_from_plan_are_reported(running, expected):
    servers = [
        {"name": "a", "action": "restart", "revision": "r2"},
        {"name": "b", "action": "start", "revision": "r2"},
        {"name": "c", "action": "stop", "revision": "r1"},
        {"name": "d", "action": "keep", "revision": "r1"},
    ]
    assert rollout_summary.not_as_planned({"servers": servers}, running) == expected


def test_failed_host_offers_rollback_command():
    host = rollout_summary.failed(
        INITIAL, PLAN, {"servers": [{}], "ready": 0}, "Check", "0 of 1\nlog", "ansible-playbook back"
    )
    assert (host["state"], host["ready_servers"], host["actions"]) == ("failed", 0, {"restart": 2, "stop": 1})
    assert rollout_summary.failure_text("h", host) == (
        'h failed at the task "Check": 0 of 1\n'
        "The rollout stopped here. Fix the cause and run it again, or return h to what it ran before:\n"
        "  ansible-playbook back"
    )


def test_unchanged_host_offers_no_rollback():
    host = rollout_summary.failed(INITIAL, PLAN, {}, "Plan", "", None)
    assert host["actions"] == {}
    text = rollout_summary.failure_text("h", host)
    assert text.startswith('h failed at the task "Plan":\nNothing was changed.')


def test_summary_of_failed_rollout():
    hosts = {
        "b": {**rollout_summary.updated(INITIAL, PLAN, HEALTH, False), "seconds": 8.14, "began": 1.0},
        "a": {**rollout_summary.failed(INITIAL, PLAN, {}, "Check", "no", "back"), "message": "…"},
        # Lost without an error, for example by a handler that failed.
        "d": {**INITIAL, "state": "updating"},
        "c": INITIAL,
    }
    result = rollout_summary.summary(hosts, 61.26)
    assert list(result["hosts"]) == ["b", "a", "d", "c"]
    assert set(result["hosts"]["a"]) == set(INITIAL)
    assert {key: value for key, value in result.items() if key not in ("hosts", "collection_version")} == {
        "schema_version": 1,
        "kind": "rollout",
        "is_complete": False,
        "updated": 1,
        "unchanged": 0,
        "planned": 0,
        "failed": 2,
        "untouched": 1,
        "seconds": 61.3,
    }
    assert rollout_summary.summary_lines(result) == [
        "rollout: 1 updated, 2 failed, 1 untouched, 1 min 01 s in all",
        "HOST  STATE      SECONDS  SERVERS READY  SERVERS",
        "b     updated        8.1  3 of 3         2 restarted, 1 stopped",
        "a     failed           -  -              2 restarted, 1 stopped",
        "d     failed           -  -              -",
        "c     untouched        -  -              -",
    ]


def test_summary_of_complete_rollout():
    hosts = {
        "a": rollout_summary.updated(INITIAL, SAME, HEALTH, False),
        "b": rollout_summary.updated(INITIAL, PLAN, {}, True),
    }
    result = rollout_summary.summary(hosts, 1.0)
    assert result["is_complete"]
    assert rollout_summary.summary_lines(result)[-1].endswith("2 to restart, 1 to stop")


@pytest.mark.parametrize(
    ("extra_vars", "expected"),
    [
        ((), ""),
        (["profile=production", "output=json", "output_file=x", "rollout_serial=[1]"], ""),
        (["api_key=1", "ansible_become_PASSWORD=x", {"hf_token": 1, "profile": "x"}], ""),
        (["servers_state_dir='/a b'", "@v.yml"], """ -e 'servers_state_dir='"'"'/a b'"'"'' -e @v.yml"""),
        # "key" within a value or a file's name does not make it a secret.
        (
            ["servers_state_dir=/srv/monkeys", "@keys.yml", "ansible_ssh_private_key_file=/k"],
            " -e servers_state_dir=/srv/monkeys -e @keys.yml -e ansible_ssh_private_key_file=/k",
        ),
        # Names of secrets cannot be guessed: only known variables are passed on.
        (["db_pw=s3cret", "ansible_become_pw=s3cret", {"ansible_ssh_pass": "s3cret", "vault": {"pw": "s3cret"}}], ""),
        (["verify_api_key=s3cret", {"verify_api_key": "s3cret"}], ""),
        (["servers_user=https://u:s3cret@h/x?sig=s3cret"], " -e 'servers_user=https://h/x?…'"),
        (
            [{"servers_user_groups": ["http://u:s3cret@h/"]}],
            """ -e '{"servers_user_groups": ["http://h/"]}'""",
        ),
        ([{"servers_user": "x", "api_key": "y"}], """ -e '{"servers_user": "x"}'"""),
    ],
)
def test_rollback_command_repeats_extra_vars(extra_vars, expected):
    command = rollout_summary.rollback_command(
        "rollback.yml", ["inv", "h,"], "gpu1", extra_vars, (), action._rollback_variables()
    )
    assert command == f"ansible-playbook -i inv -i h, rollback.yml --limit gpu1{expected}"


def test_rollback_command_repeats_connection_options(monkeypatch):
    given = ["-i", "h,", "-u", "deploy", "--private-key", "/k", "-b", "-K", "--vault-id", "a@p", "--vault-id", "b@q"]
    given += ["--ssh-common-args=-J bastion", "-e", "profile=x servers_state_dir=/srv/llama", "-e", '{"a": 1}']
    given += ["magi.llama.rollout"]
    cli = PlaybookCLI(["ansible-playbook", *given])
    cli.init_parser()
    arguments = vars(cli.parser.parse_args(given))
    monkeypatch.setattr(action.context, "CLIARGS", arguments)
    assert action._rollback_command({"playbook_dir": "/p", "inventory_hostname": "gpu1"}) == (
        "ansible-playbook -i h, magi.llama.rollback --limit gpu1 --user=deploy --private-key=/k "
        "'--ssh-common-args=-J bastion' --become --ask-become-pass --vault-id=a@p --vault-id=b@q "
        "-e servers_state_dir=/srv/llama"
    )


def test_stand_in_of_a_change_is_over_when_the_host_is_updated() -> None:
    own = {"name": "a", "action": "restart", "revision": "r"}
    stand_in = {"name": "a-surge", "action": "start", "revision": "s", "stands_in_for": "a"}
    assert rollout_summary.not_as_planned({"servers": [own, stand_in]}, {"a": "r"}) == []
    assert rollout_summary.not_as_planned({"servers": [own, stand_in]}, {}) == ["a"]


FAILED = {**INITIAL, "state": "failed"}
LOST = {**FAILED, "is_unreachable": True}


@pytest.mark.parametrize(
    ("hosts", "max_unreachable", "expected"),
    [
        ([INITIAL, {**INITIAL, "state": "updated"}], 0, False),
        ([INITIAL, FAILED], 5, True),
        # Its connection was lost while it was changed.
        ([{**INITIAL, "state": "updating"}], 5, True),
        ([INITIAL, LOST], 0, True),
        ([INITIAL, LOST], 1, False),
        ([LOST, LOST], 1, True),
        ([LOST, FAILED], 5, True),
    ],
)
def test_gate_is_closed_by_a_failure_or_too_many_hosts_out_of_reach(
    hosts: list[dict[str, Any]], max_unreachable: int, expected: bool
) -> None:
    assert rollout_summary.is_closed(hosts, max_unreachable) is expected


def test_unreachable_is_not_part_of_the_document() -> None:
    result = rollout_summary.summary({"a": LOST}, 1.0)
    assert "is_unreachable" not in result["hosts"]["a"]
    assert rollout_summary.recorded(LOST) == LOST


def test_changed_hosts_are_those_that_a_rollback_returns() -> None:
    states = {"a": "updated", "b": "unchanged", "c": "untouched", "d": "failed", "e": "failed"}
    hosts = {name: {**INITIAL, "state": state} for name, state in states.items()}
    hosts["e"]["rollback"] = "ansible-playbook rollback.yml --limit e"
    assert rollout_summary.changed_hosts(rollout_summary.summary(hosts, 1.0)) == ["a", "e"]
