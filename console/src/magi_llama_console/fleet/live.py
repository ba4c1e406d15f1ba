# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folds what was seen from outside, whether servers answer, into the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .facts import Fleet, Server, Source


def with_liveness(
    fleet: Fleet, found: Mapping[tuple[str, str], Mapping[str, Any]], begun: str, at: str, source: Source
) -> Fleet:
    """The fleet after a look at its servers from outside: {(host, server): {state, reason}} of those that were seen.

    begun and at are when the look began and ended. Only servers that are known change; a host whose servers answer is
    reachable. A host that a run has changed meanwhile stays as that has said: its servers may have been seen before.
    """
    hosts = dict(fleet.hosts)
    for name, host in fleet.hosts.items():
        seen = {server: found[name, server] for server in host.servers if (name, server) in found}
        if not seen or (host.changed_at is not None and host.changed_at > begun):
            continue
        servers = {key: _seen(server, seen[key]) if key in seen else server for key, server in host.servers.items()}
        answers = any(one["state"] in ("ready", "loading") for one in seen.values())
        is_reachable = True if answers else host.is_reachable
        hosts[name] = replace(host, servers=servers, as_of=at, source=source, is_reachable=is_reachable)
    return replace(fleet, hosts=hosts)


def _seen(server: Server, one: Mapping[str, Any]) -> Server:
    state = one["state"]
    if state == server.state or (state == "unhealthy" and server.state in ("stopped", "failed", "absent")):
        # What a run or a status said of a server that is down says more than that it does not answer.
        return server
    is_ready = state == "ready"
    return replace(server, state=state, is_ready=is_ready, reason=None if is_ready else one.get("reason"))
