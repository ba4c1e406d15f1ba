# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which servers a deployment opens to other machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.values import is_loopback


def newly_opened(
    servers: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], ready: Mapping[str, Any]
) -> list[str]:
    """Return the names of servers that other machines can reach, and could not before this deployment.

    before are the servers of the last good deployment; ready is each server's revision with which it was last ready.
    """
    open_before = {str(server["name"]) for server in before if _is_open(server)}
    return [
        str(server["name"])
        for server in servers
        if _is_open(server)
        and server["name"] not in open_before
        and ready.get(str(server["name"])) != server.get("revision")
    ]


def _is_open(server: Mapping[str, Any]) -> bool:
    return not is_loopback(str(server.get("host", "127.0.0.1")))
