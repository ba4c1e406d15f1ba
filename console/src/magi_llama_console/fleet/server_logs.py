# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ends of servers' logs, which are in the result document of a status, and not in its event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import received
from .facts import Fleet


def with_logs(fleet: Fleet, document: Mapping[str, Any], at: str) -> Fleet:
    """The fleet with the logs that a status has read by this time, of the servers that are known."""
    hosts = dict(fleet.hosts)
    for name, part in document["hosts"].items():
        try:
            logs = {one["name"]: one["log"] for one in received.status(part)["servers"] if "log" in one}
        except received.Unusable:
            # Its event said so already.
            continue
        if name in hosts and logs:
            servers = hosts[name].servers
            read = {key: replace(servers[key], log=logs[key], log_as_of=at) for key in logs if key in servers}
            hosts[name] = replace(hosts[name], servers={**servers, **read})
    return replace(fleet, hosts=hosts)
