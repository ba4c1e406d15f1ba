# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of two configurations, and what a reload takes over of their states."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Server
from ansible_collections.magi.llama.plugins.module_utils._gateway.server_lines import (
    coming,
    server_line,
    servers_in,
    states_for,
)

# As HAProxy 2.6 answers "show servers state"; b is in maintenance, c drains, and d was disabled and came back.
STATES = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight …
3 m 1 a 192.0.2.1 2 0 1 1 8 15 3 2 6 0 0 0 - 8080 - 0 0 - - 0
3 m 2 b 192.0.2.2 0 5 1 1 8 15 3 0 14 0 0 0 - 8080 - 0 0 - - 0
3 m 3 c 192.0.2.3 2 8 1 1 8 15 3 2 6 0 0 0 - 8080 - 0 0 - - 0
3 m 4 d 192.0.2.4 2 4 1 1 8 15 3 2 6 0 0 0 - 8080 - 0 0 - - 0
"""


def config(*names: str, disabled: tuple[str, ...] = (), host: str = "192.0.2.9") -> str:
    servers = [Server(name, host, 8080, 2, name in disabled) for name in names]
    return "\n".join(["backend m from MAGI_models", "  option httpchk", *map(server_line, servers)])


def states(text: str) -> dict[str, tuple[str, str]]:
    """Operation and administration of each server."""
    rows = [line.split() for line in text.splitlines()[2:]]
    assert all(len(row) == 25 for row in rows)
    return {row[3]: (row[5], row[6]) for row in rows}


def test_line_of_server_is_read_as_written() -> None:
    words = ["192.0.2.9:8080", "maxconn", "2", "init-addr", "last,libc,none"]
    assert servers_in(config("a", "b", disabled=("b",))) == {("m", "a"): words, ("m", "b"): [*words, "disabled"]}


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ("", config("a"), "a"),
        (config("a"), config("a", "b"), "b"),
        (config("a", "b", disabled=("b",)), config("a", "b"), "b"),
        (config("a"), config("a", "b", disabled=("b",)), ""),
        (config("a"), config("a", disabled=("a",)), ""),
    ],
)
def test_added_and_returning_servers_come(before: str, after: str, names: str) -> None:
    assert coming(before, after) == [("m", name) for name in names]


def test_reload_keeps_state_of_servers_in_use_only() -> None:
    assert states(states_for(config("a", "d"), STATES)) == {"a": ("2", "0"), "d": ("2", "0")}


def test_disabled_server_stays_so_over_reload() -> None:
    assert states(states_for(config("a", "b", disabled=("a", "b")), STATES)) == {}


@pytest.mark.parametrize("name", ["b", "c", "new"])
def test_server_that_comes_with_reload_is_stopped_until_its_check(name: str) -> None:
    assert states(states_for(config(name), STATES)) == {name: ("0", "0")}


@pytest.mark.parametrize(("host", "written"), [("2001:db8::1", "2001:db8::1"), ("gpu1.example.com", None)])
def test_new_server_has_its_address_and_none_for_a_name(host: str, written: str | None) -> None:
    rows = [line.split() for line in states_for(config("new", host=host), STATES).splitlines()[2:]]
    assert [(row[4], row[18]) for row in rows] == ([(written, "8080")] if written else [])
