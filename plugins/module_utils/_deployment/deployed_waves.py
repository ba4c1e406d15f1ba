# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Waves for servers that are deployed already, and so have no stand-ins: restarts, stops, and a rollback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.processes import Process, memory
from .._health.observations import ready_seconds
from .._plan.inputs import Host, Settings
from .._plan.waves import changed_in_waves

# Without a port there is no stand-in.
NO_PORTS = (1, 0)


def deployed_waves(
    servers: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    running: Mapping[str, Process],
    given: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the servers, each with an action, and the parts of a plan that say how they change; see changed_in_waves.

    given are the module's arguments: state_dir and those about downtime. Raises PlanError.
    """
    settings = Settings(
        given["state_dir"],
        record["service_manager"],
        *NO_PORTS,
        without_downtime=given["without_downtime"],
        served_here=given["served_here"],
        served_elsewhere=frozenset(given["served_elsewhere"]),
        allow_downtime=given["allow_downtime"],
    )
    seconds = ready_seconds(given["state_dir"]) if given["without_downtime"] else {}
    host = Host(memory(), record=record["servers"], running=running, ready_seconds=seconds)
    return changed_in_waves([dict(server) for server in servers], {}, settings, host)
