# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be requested, and the command that it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from magi_llama_console.jobs.requests import VERBS, Known, RequestRefused, command, validate

KNOWN = Known(
    hosts=("node1", "node2"),
    groups={"all": ("node1", "node2", "gate"), "first": ("node1",), "gateways": ("gate",)},
    profiles=frozenset({"production", "development"}),
    servers={"node1": frozenset({"tiny-q4", "tiny-q3"})},
)


def argv(verb: str, **variables: Any) -> tuple[list[str], dict[str, Any]]:
    request = validate(verb, variables, KNOWN)
    return command(
        request, program=Path("/bin/ap"), inventory=Path("/inv"), checkout=Path("/src"), folder=Path("/data/j")
    )


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_is_a_playbook_of_the_collection(verb: str) -> None:
    assert (Path(__file__).parents[3] / f"playbooks/{verb}.yml").is_file()


def test_command_names_playbook_hosts_and_file_of_variables() -> None:
    found, extra = argv("site", profile="production", limit=["first"], check=True, allow_downtime=True)
    assert found == [
        "/bin/ap",
        "-i",
        "/inv",
        "-e",
        "@/data/j/vars.json",
        "--limit",
        "node1",
        "--check",
        "/src/playbooks/site.yml",
    ]
    assert extra == {"profile": "production", "allow_downtime": True, "output_file": "/data/j/result.json"}
    installed = command(
        validate("stop", {"servers": ["all"]}, KNOWN),
        program=Path("/bin/ap"),
        inventory=Path("/inv"),
        checkout=None,
        folder=Path("/data/j"),
    )
    # Without limit too: only the hosts that the queue keeps from other jobs.
    limited = ["--limit", "node1,node2", "magi.llama.stop"]
    assert installed == (["/bin/ap", "-i", "/inv", "-e", "@/data/j/vars.json", *limited], {"servers": "all"})


def test_status_reads_the_log_of_the_servers_that_are_named() -> None:
    _, extra = argv("status", limit=["node1"], output_log=["tiny-q4", "tiny-q3"])
    assert extra == {"output_log": "tiny-q4,tiny-q3", "output_file": "/data/j/result.json"}
    with pytest.raises(RequestRefused, match=r"output_log: there is no 'tiny-q5'"):
        argv("status", limit=["node1"], output_log=["tiny-q5"])


def test_without_limit_all_hosts_with_servers_are_meant() -> None:
    assert validate("site", {}, KNOWN).hosts == ("node1", "node2")
    # Not those of a group that run none.
    assert validate("site", {"limit": ["all"]}, KNOWN).hosts == ("node1", "node2")


@pytest.mark.parametrize(
    "verb, variables, key",
    [
        ("teardown", {}, "verb"),
        ("site.yml", {}, "verb"),
        ("site", {"limit": ["node3"]}, "limit"),
        ("site", {"limit": ["@/etc/passwd"]}, "limit"),
        ("site", {"limit": ["~node.*"]}, "limit"),
        ("site", {"limit": ["node1,node2"]}, "limit"),
        ("site", {"limit": ["!node1"]}, "limit"),
        ("site", {"limit": ["--become"]}, "limit"),
        ("site", {"limit": ["gateways"]}, "limit"),
        ("site", {"profile": "../../etc/passwd"}, "profile"),
        ("site", {"profile": "staging"}, "profile"),
        ("site", {"profile": "{{ lookup('pipe', 'id') }}"}, "profile"),
        ("site", {"servers": ["tiny-q4"]}, "servers"),
        ("site", {"apply": "$(id)"}, "apply"),
        ("status", {"profile": "production"}, "profile"),
        ("status", {"check": True}, "check"),
        ("stop", {}, "servers"),
        ("stop", {"servers": []}, "servers"),
        ("stop", {"servers": ["tiny-q5"], "limit": ["node1"]}, "servers"),
        ("stop", {"servers": ["x; rm -rf /"]}, "servers"),
        ("stop", {"servers": ["{{ 1 }}"]}, "servers"),
        ("stop", {"servers": ["a,b"]}, "servers"),
        ("site", {"ansible_connection": "local"}, "ansible_connection"),
    ],
)
def test_anything_else_is_refused(verb: str, variables: dict[str, Any], key: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        validate(verb, variables, KNOWN)
    assert refused.value.key == key


def test_servers_of_hosts_that_are_not_known_are_checked_by_form_alone() -> None:
    assert validate("stop", {"servers": ["tiny-q5"]}, KNOWN).variables == {"servers": ["tiny-q5"]}
