# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Start servers on demand that sleep, to see whether they work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .machine import Machine
from .outcome import Outcome
from .probe import Server, wake

# What a start may take besides the server's own: others have to make room.
ROOM_SECONDS = 120.0


def split(servers: Sequence[Server], machine: Machine) -> tuple[list[Server], list[Server]]:
    """Return the servers that have a process or are stopped, and those that sleep."""
    if not any("on_demand" in server for server in servers):
        return list(servers), []
    statuses = machine.status([str(server["name"]) for server in servers])
    asleep = [server for server in servers if statuses[str(server["name"])].state == "sleeping"]
    return [server for server in servers if server not in asleep], asleep


def wake_and_wait(
    servers: Sequence[Server],
    wait: Callable[[Sequence[Server]], list[Outcome]],
    ask: Callable[[Server, float], str | None] = wake,
) -> list[Outcome]:
    """Start servers by a request, one after another, as one may have to make room for the next; wait for each."""
    outcomes = []
    for server in servers:
        problem = ask(server, float(server["max_startup_time"]) + ROOM_SECONDS)
        [outcome] = wait([server])
        if outcome.state == "sleeping":
            # It was healthy and is stopped again, or did not start.
            problem = problem or "it was stopped again before it could be asked"
            outcome = replace(outcome, state="failed", is_ready=False, detail=problem)
        outcomes.append(outcome)
    return outcomes
