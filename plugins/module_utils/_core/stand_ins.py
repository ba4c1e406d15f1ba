# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Stand-ins in a record: servers that are there for the time of a change only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def stand_ins(servers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The stand-ins among servers of a record, by name: whose place each takes."""
    return {str(server["name"]): str(server["stands_in_for"]) for server in servers if server.get("stands_in_for")}


def without_stand_ins(servers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The servers of a plan that are not stand-ins: what its change leads to, and what it ends."""
    return [server for server in servers if "stands_in_for" not in server]
