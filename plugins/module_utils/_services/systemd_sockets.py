# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The further units of servers that systemd starts on demand: a socket and a proxy for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from .._launch.on_demand import proxy_unit, socket_unit
from .._launch.units import TARGET, UNIT_FOLDER, unit_name
from .base import ServiceStatus


def wants_folder() -> str:
    """The folder of links to the servers that start at boot."""
    return os.path.join(UNIT_FOLDER, f"{TARGET}.wants")


def is_on_demand(name: str) -> bool:
    """Return whether a server is to be started on demand, by its units."""
    return os.path.lexists(os.path.join(UNIT_FOLDER, socket_unit(name)))


def units_of(name: str) -> list[str]:
    """Return all units of a server; also those whose files were removed while the socket may still be there."""
    linked = os.path.lexists(os.path.join(wants_folder(), socket_unit(name)))
    has_socket = linked or is_on_demand(name)
    return [*([socket_unit(name), proxy_unit(name)] if has_socket else []), unit_name(name)]


def boot_unit(name: str) -> str:
    """Return the unit of a server that is started, and enabled for the boot."""
    return socket_unit(name) if is_on_demand(name) else unit_name(name)


def stale_links(names: Iterable[str]) -> list[str]:
    """Return links that start a server at boot in another way than it is to be: it has changed to or from demand."""
    links = [
        os.path.join(wants_folder(), unit)
        for name in names
        for unit in (unit_name(name), socket_unit(name))
        if unit != boot_unit(name)
    ]
    return [link for link in links if os.path.islink(link)]


def with_socket(status: ServiceStatus, socket: Mapping[str, str]) -> ServiceStatus:
    """Return the status of a server on demand. socket are the properties of its socket; none without one."""
    if status.is_alive or status.state == "restarting" or not socket:
        return status
    if socket.get("ActiveState") == "active":
        failed = status.state == "failed"
        # What ended it counts where that was a failure. The next request starts it again in any case.
        return replace(
            status,
            state="sleeping",
            exit_code=status.exit_code if failed else None,
            exit_text=(status.exit_text or "it failed") if failed else None,
        )
    if socket.get("ActiveState") == "failed":
        return replace(status, state="failed", exit_text=f"its socket failed ({socket.get('Result')})")
    return status


def all_units(names: Sequence[str]) -> list[str]:
    """Return all units of these servers."""
    return [unit for name in names for unit in units_of(name)]
