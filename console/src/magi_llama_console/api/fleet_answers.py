# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the endpoints about the fleet share: which hosts a request means, and how old an answer is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..console import Console
from ..fleet.facts import Host, Server
from .problems import Problem, unknown


async def hosts_of(console: Console, host: str | None, group: str | None = None) -> list[Host]:
    """The hosts of the inventory, or the one, or those of a group. Raises Problem: 404 for an unknown name, 503."""
    watch = console.fleet
    await watch.refresh()
    if watch.inventory_error:
        raise Problem(503, watch.inventory_error, fix="Repair the inventory; it is read again by itself.")
    hosts = watch.hosts()
    if group is not None:
        members = watch.inventory.groups.get(group)
        if members is None:
            raise unknown("group", group, watch.inventory.groups)
        hosts = [one for one in hosts if one.name in members]
    if host is not None:
        if host not in watch.inventory.hosts:
            raise unknown("host", host, watch.inventory.hosts)
        hosts = [one for one in hosts if one.name == host]
    return hosts


def age(hosts: Iterable[Host]) -> dict[str, Any]:
    """{"as_of", "source"} of the host of which the news are oldest; null, and the source none, without any news."""
    known = [(one.as_of, one.source) for one in hosts if one.as_of is not None]
    as_of, source = min(known, default=(None, "none"))
    return {"as_of": as_of, "source": source}


def models_age(hosts: Iterable[Host]) -> dict[str, Any]:
    """The same for what models there are: registries come with events alone."""
    known = [one.models_as_of for one in hosts if one.models_as_of is not None]
    return {"as_of": min(known, default=None), "source": "events" if known else "none"}


def servers_of(hosts: Sequence[Host]) -> list[Server]:
    """Their servers, in the order of hosts and ports."""
    return [server for host in hosts for server in sorted(host.servers.values(), key=lambda one: (one.port, one.name))]
