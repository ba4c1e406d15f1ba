# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Assign a port to every server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.argv import flag_value
from .._core.processes import Listener
from .inputs import Host, PlanError, Server, Settings


def assign_ports(
    names: Sequence[str], orphans: Sequence[Server], settings: Settings, host: Host, profile: Mapping[str, Any]
) -> dict[str, int]:
    """Return {name: port}: a server keeps its port, a new one gets the first free port.

    Ports of servers that are about to be stopped are used last.
    """
    valid = range(settings.port_first, settings.port_last + 1)
    held = {int(server["port"]): str(server["name"]) for server in host.record}
    held.update({port: name for name, process in host.running.items() if (port := port_of(process.argv)) is not None})
    ours = {pid for process in host.running.values() for pid in (process.pid, *process.children)}
    current = {name: port for port, name in held.items()}

    for name in names:
        port = current.get(name)
        listener = host.listeners.get(port) if port is not None and port in valid else None
        if listener is not None and not _is_ours(listener, name, ours, host):
            if not settings.move_on_conflict:
                raise PlanError(
                    f"Port {port} of server {name} is held by {listener.holder}: stop that process, "
                    "or let the server move to a free port with -e servers_move_on_conflict=true."
                )
            del current[name]

    foreign = {
        port
        for port in valid
        if port in host.listeners and not _is_ours(host.listeners[port], held.get(port, ""), ours, host)
    }
    ports = {name: current[name] for name in names if current.get(name) in valid}
    taken = {*ports.values(), *foreign, *(int(server["port"]) for server in orphans)}
    fresh = [port for port in valid if port not in taken and port not in held]
    freed = [port for port in valid if port not in taken and port in held]
    queue = iter([*fresh, *freed])
    try:
        for name in names:
            if name not in ports:
                ports[name] = next(queue)
    except StopIteration:
        others = "".join(f"; {port} is held by {host.listeners[port].holder}" for port in sorted(foreign))
        raise PlanError(
            f'profile "{profile["name"]}" ({profile["source"]}) wants {len(names)} servers, the port range '
            f"{settings.port_first} to {settings.port_last} has room for {len(valid) - len(foreign)}{others}: "
            "widen servers_port_range_start and servers_port_range_end, or enable fewer models."
        ) from None
    return ports


def port_of(argv: Sequence[str]) -> int | None:
    """Return the value of --port in a command line."""
    value = flag_value(argv, "--port") or ""
    return int(value) if value.isascii() and value.isdigit() else None


def _is_ours(listener: Listener, name: str, ours: set[int], host: Host) -> bool:
    if listener.pid is None:
        # The socket's owner is not visible to this user: assume it is our server if one runs with this port.
        return name in host.running
    if listener.pid not in ours or name not in host.running:
        return listener.pid in ours
    return listener.pid in (host.running[name].pid, *host.running[name].children)
