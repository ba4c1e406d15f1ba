# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has changed in the fleet since it was looked at last, for the stream of events.

A server that stops answering between two runs is in no event: only the console has seen it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..console import Console
from .v1 import hosts, servers


@dataclass(frozen=True, slots=True)
class Change:
    """A host or a server as it is now: kind is host or server, the document that of /hosts or /servers."""

    kind: str
    document: dict[str, Any]


class FleetChanges:
    """Begins with the fleet as it is: the first look finds only what has changed since."""

    def __init__(self, console: Console) -> None:
        self._console, self._fleet = console, console.fleet.fleet

    async def take(self) -> list[Change]:
        """The hosts and servers that are not as they were at the last look."""
        new = self._console.fleet.fleet
        # Facts are never changed in place, so what is the same object is as it was.
        if new is self._fleet:
            return []
        old, self._fleet = self._fleet, new
        running = {name: job.id for job in await self._console.store.jobs(("running",), 1000) for name in job.hosts}
        found: list[Change] = []
        for name in self._console.fleet.inventory.hosts:
            host, before = new.hosts.get(name), old.hosts.get(name)
            if host is None or host is before or host == before:
                continue
            known = before.servers if before else {}
            found += [
                Change("server", servers.described(server))
                for server in host.servers.values()
                if known.get(server.name) != server
            ]
            found.append(Change("host", hosts.described(self._console, host, running).model_dump()))
        return found
