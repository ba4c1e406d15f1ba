# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The servers of HAProxy's configuration: their lines, and their states from one process to the next."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from .._core.exchange import authority
from .fleet import Server

# A connection that fails makes the checks quick, and two failed ones take the server out. By itself it does not: the
# only server of a model would be out for every request until its next check.
CHECKS = "check inter 1s fastinter 200ms downinter 500ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter"
# A name that cannot be resolved must not keep the gateway from starting.
ADDRESSES = ("init-addr", "last,libc,none")
# Draining: in HAProxy's maintenance its requests are finished, and new ones go elsewhere. In its state drain those
# that stick to the server would still come.
DISABLED = "disabled"

# (backend, server)
Key = tuple[str, str]
# Of the states of servers: the columns that are read or changed. A server that is stopped is used after its next check.
_BACKEND, _NAME, _OPERATION, _ADMIN, _CHECK, _HEALTH, _CHECKS = 1, 3, 5, 6, 10, 12, 13
_COLUMNS = 25
_STOPPED, _UNCHECKED, _CHECKS_ON = "0", "1", "6"
# An administrator's maintenance or drain; other bits of the number say only where that came from.
_OUT = 0x01 | 0x08


def server_line(server: Server, check_at: tuple[str, int] | None = None, *, is_sticky: bool = False) -> str:
    """The line of a server in its backend. check_at is where a server on demand is checked, which would start it."""
    words = ["server", server.name, authority(server.address, server.port), "maxconn", str(server.slots)]
    if is_sticky:
        # Requests that stick to a busy server go to another one.
        words += ["maxqueue", "1"]
    if server.is_on_demand and check_at:
        words += ["addr", check_at[0], "port", str(check_at[1])]
    words += [*ADDRESSES, DISABLED] if server.is_draining else ADDRESSES
    return "  " + " ".join(words)


def servers_in(config: str) -> dict[Key, list[str]]:
    """The servers of a configuration, each with the words behind its name: address, maxconn, slots."""
    found: dict[Key, list[str]] = {}
    backend = ""
    for line in config.splitlines():
        words = line.split()
        if line.startswith("backend "):
            backend = words[1]
        elif line.startswith("  server "):
            found[backend, words[1]] = words[2:]
    return found


def without_disabled(words: Sequence[str]) -> list[str]:
    return [word for word in words if word != DISABLED]


def coming(before: str, after: str) -> list[Key]:
    """The servers that a configuration uses and the previous one did not."""
    old, new = servers_in(before), servers_in(after)
    return sorted(key for key, words in new.items() if DISABLED not in words and DISABLED in old.get(key, [DISABLED]))


def states_for(config: str, states: str) -> str:
    """The states of servers for a process with another configuration, which alone decides which are used.

    states is the answer to "show servers state". A server that the present process does not use begins as stopped, so
    that it is used after its first check; without its line it would count as up until then.
    """
    servers = servers_in(config)
    version, header, *lines = states.splitlines()
    known = {(row[_BACKEND], row[_NAME]): row for row in (line.split() for line in lines) if len(row) == _COLUMNS}
    rows = []
    for key, words in sorted(servers.items()):
        row = known.get(key) or _new_row(key, words[0])
        if DISABLED in words or row is None:
            continue
        if int(row[_ADMIN]) & _OUT:
            row[_OPERATION], row[_CHECK], row[_HEALTH], row[_CHECKS] = _STOPPED, _UNCHECKED, "0", _CHECKS_ON
        row[_ADMIN] = "0"
        rows.append(" ".join(row))
    return "\n".join([version, header, *rows]) + "\n"


def _new_row(key: Key, address: str) -> list[str] | None:
    """The row of a server that no process knows yet; None where its address is a name, which only HAProxy resolves."""
    host, _colon, port = address.rpartition(":")
    try:
        host = str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return None
    state = f"{_STOPPED} 0 1 1 0 {_UNCHECKED} 0 0 {_CHECKS_ON} 0 0 0"
    row = f"1 {key[0]} 1 {key[1]} {host} {state} - {port} - 0 0 - - 0".split()
    if len(row) != _COLUMNS:
        raise AssertionError(f"A row of a server's state has {_COLUMNS} columns, not {len(row)}.")
    return row
