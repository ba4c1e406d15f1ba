# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Assign a port to every server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.argv import flag_value
from .._core.processes import Listener, Process
from .._core.stand_ins import stand_ins
from .inputs import Host, PlanError, Server, Settings
from .profile import Selected

# In the environment of a server behind a socket: the socket's port.
PUBLIC_PORT = "MAGI_LLAMA_PORT"
# Names that left and are forgotten last; each is a line of deployment.json.
MAX_REMEMBERED = 512


@dataclass(frozen=True)
class Ports:
    """Every server's port, and what the next plan has to know about ports.

    moves says why a server does not keep its port, by name. homes are the free ports to which servers go back with
    their next restart. remembered are the ports of servers that left or were moved by a conflict, by name.
    """

    assigned: dict[str, int]
    moves: dict[str, str]
    homes: dict[str, int]
    remembered: dict[str, int]


def assign_ports(
    wanted: Sequence[tuple[str, Selected]],
    orphans: Sequence[Server],
    settings: Settings,
    host: Host,
    profile: Mapping[str, Any],
) -> Ports:
    """Return each server's port: the one that is set for it, the one that it has or had, else the first free one.

    Ports of servers that are about to be stopped, or that left earlier, are given away last. Raises PlanError.
    """
    names = [name for name, _selected in wanted]
    valid = range(settings.port_first, settings.port_last + 1)
    held = {int(server["port"]): str(server["name"]) for server in host.record}
    held.update({port: name for name, port in host.sockets.items()})
    held.update({port: name for name, process in host.running.items() if (port := public_port(process)) is not None})
    current = {name: port for port, name in held.items()}
    foreign = {port for port in valid if _holder(port, held.get(port, ""), host)}
    staying = {int(server["port"]): str(server["name"]) for server in orphans}
    pins = _pins(wanted, staying, foreign, settings, host, profile)
    reserved = {**_reserved(settings, profile), **{port: name for name, port in pins.items()}}
    remembered = {name: port for name, port in host.remembered.items() if port in valid}

    kept, moves, conflicts = _current_ports(names, pins, current, reserved, settings, host)
    ports = {**pins, **kept}
    blocked = {*foreign, *staying, *(port for port, owner in reserved.items() if pins.get(owner) != port)}
    for name in names:
        port = remembered.get(name)
        if name not in ports and port is not None and port not in {*ports.values(), *blocked}:
            ports[name] = port
    taken = {*ports.values(), *blocked}
    # In the order in which their servers left.
    freed = [*(port for port in remembered.values() if port not in held), *(port for port in valid if port in held)]
    fresh = [port for port in valid if port not in freed]
    queue = (port for port in dict.fromkeys([*fresh, *freed]) if port not in taken)
    try:
        for name in names:
            if name not in ports:
                ports[name] = next(queue)
    except StopIteration:
        others = "".join(f"; {port} is held by {host.listeners[port].holder}" for port in sorted(foreign))
        others += "".join(f"; {port} is set for {reserved[port]}" for port in sorted(blocked & {*reserved} - foreign))
        raise PlanError(
            f'profile "{profile["name"]}" ({profile["source"]}) wants {len(names)} servers, the port range '
            f"{settings.port_first} to {settings.port_last} has room for {len({*valid} - blocked)}{others}: "
            "widen servers_port_range_start and servers_port_range_end, or enable fewer models."
        ) from None
    taken = {*ports.values(), *blocked}
    homes = {name: port for name, port in remembered.items() if name in kept and port not in taken}
    left = {name: port for name, port in sorted(current.items()) if name not in ports and port not in staying}
    # The port of a stand-in is not an address that anyone knows.
    gone = {name: port for name, port in left.items() if name not in stand_ins(host.record)}
    after = _remembered(remembered, gone, conflicts, ports, valid)
    return Ports({name: ports[name] for name in names}, moves, homes, after)


def _current_ports(
    names: Sequence[str],
    pins: Mapping[str, int],
    current: Mapping[str, int],
    reserved: Mapping[int, str],
    settings: Settings,
    host: Host,
) -> tuple[dict[str, int], dict[str, str], dict[str, int]]:
    """Return the ports that servers keep, why others move, and the ports that conflicts take from them, by name."""
    kept: dict[str, int] = {}
    moves: dict[str, str] = {}
    conflicts: dict[str, int] = {}
    wrong: list[str] = []
    for name in names:
        port = current.get(name)
        if port is None:
            continue
        holder = _holder(port, name, host)
        if name in pins:
            if pins[name] != port:
                moves[name] = f"moves from {port}: its port is set to {pins[name]}"
        elif not settings.port_first <= port <= settings.port_last:
            moves[name] = f"moves from {port}: it is not in the port range"
        elif port in reserved:
            moves[name] = f"moves from {port}: it is set for {reserved[port]}"
        elif holder is None:
            kept[name] = port
        elif settings.move_on_conflict:
            moves[name] = f"moves from {port}: held by {holder}"
            conflicts[name] = port
        else:
            wrong.append(
                f"Port {port} of server {name} is held by {holder}: stop that process, "
                "or let the server move to a free port with -e servers_move_on_conflict=true."
            )
    if wrong:
        raise PlanError(" ".join(wrong))
    return kept, moves, conflicts


def back_home(ports: Ports, name: str) -> str:
    """Return why a server whose port a conflict had moved changes it again."""
    return f"goes back from {ports.assigned[name]} to {ports.homes[name]}, which is free again"


def _pins(
    wanted: Sequence[tuple[str, Selected]],
    staying: Mapping[int, str],
    foreign: set[int],
    settings: Settings,
    host: Host,
    profile: Mapping[str, Any],
) -> dict[str, int]:
    """Return the ports that servers_ports and the profile set, by server. Raises PlanError."""
    pins: dict[str, int] = {}
    wrong: list[str] = []
    for name, selected in wanted:
        port = settings.ports.get(name, selected.port)
        if port is None:
            continue
        where = f"servers_ports.{name}" if name in settings.ports else _where(profile, selected)
        other = next((one for one, its in pins.items() if its == port), None)
        if not settings.port_first <= port <= settings.port_last:
            problem = (
                f"is not in the port range {settings.port_first} to {settings.port_last}: set another one, or widen "
                "servers_port_range_start and servers_port_range_end"
            )
        elif other is not None:
            problem = f"is set for {other} too: a port is for one server"
        elif port in staying:
            problem = (
                f"is that of {staying[port]}, which runs although its model is missing: set another one, bring the "
                "model back, or stop that server"
            )
        elif port in foreign:
            problem = f"is held by {host.listeners[port].holder}: stop that process, or set another port"
        else:
            pins[name] = port
            continue
        wrong.append(f"{where}: port {port} of server {name} {problem}.")
    if wrong:
        raise PlanError(" ".join(wrong))
    return pins


def _where(profile: Mapping[str, Any], selected: Selected) -> str:
    return f'profile "{profile["name"]}" ({profile["source"]}), {selected.key}.port'


def _reserved(settings: Settings, profile: Mapping[str, Any]) -> dict[int, str]:
    """Return whom each port is set for, also servers that this host lacks, so that hosts have one layout."""
    entries = (entry for entry in profile["enabled_models"] if entry.get("port") is not None)
    of_profile = {
        entry["port"] + number: str(entry["model"] or entry["key"])
        for entry in entries
        for number in range(entry["instances"])
    }
    return {**of_profile, **{port: name for name, port in settings.ports.items()}}


def _remembered(
    before: Mapping[str, int],
    gone: Mapping[str, int],
    conflicts: Mapping[str, int],
    ports: Mapping[str, int],
    valid: range,
) -> dict[str, int]:
    """Return the ports to remember, in the order in which servers left."""
    stayed = {name: port for name, port in before.items() if name not in gone}
    # The port before a first conflict stays the home through a second one.
    found = {**stayed, **{name: port for name, port in conflicts.items() if name not in before}, **gone}
    kept = {name: port for name, port in found.items() if ports.get(name) != port and port in valid}
    return dict(list(kept.items())[-MAX_REMEMBERED:])


def public_port(process: Process) -> int | None:
    """Return the port at which clients reach a process: that of its socket, or the value of --port."""
    value = process.env.get(PUBLIC_PORT) or flag_value(process.argv, "--port") or ""
    return int(value) if value.isascii() and value.isdigit() else None


def _holder(port: int, name: str, host: Host) -> str | None:
    """Return the process that listens on a port and is not this server; None if there is none."""
    listener = host.listeners.get(port)
    if listener is None or _is_ours(listener, name, host):
        return None
    return listener.holder


def _is_ours(listener: Listener, name: str, host: Host) -> bool:
    behind = next((other for other, port in host.sockets.items() if port == listener.port), None)
    if behind is not None:
        # The service manager's own socket: free for another server if this one has none.
        return behind == name or name not in {*host.running, *host.sockets}
    if listener.pid is None:
        # The socket's owner is not visible to this user: assume it is our server if one runs with this port.
        return name in host.running
    ours = {pid for process in host.running.values() for pid in (process.pid, *process.children)}
    if listener.pid not in ours or name not in host.running:
        return listener.pid in ours
    return listener.pid in (host.running[name].pid, *host.running[name].children)
