# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Servers that their first request starts: where they listen, and what they take of the memory.

The service manager listens at the server's port. The server itself has a port of its own on the loopback address, which
follows from the first one, so that nothing has to be remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._core.places import INNER_HOST
from .._core.values import MAX_PORT
from .inputs import Host, PlanError, Server, Settings
from .memory_limits import FIT_MARGIN_BYTES
from .ports import PUBLIC_PORT
from .profile import Selected

if TYPE_CHECKING:
    from .drafts import Draft

# From the port of a server to the one behind it, below the ports that Linux gives to outgoing connections.
DISTANCE = 10_000


def inner_port(port: int) -> int:
    """Return the port at which the server behind a socket at this port listens."""
    return port + DISTANCE if port + DISTANCE <= MAX_PORT else port - DISTANCE


def check_on_demand(profile: Mapping[str, Any], settings: Settings) -> None:
    """Raise PlanError for a profile that starts servers on demand where the service manager or the ports forbid it."""
    entry = next((entry for entry in profile["enabled_models"] if entry["on_demand"]), None)
    if entry is None:
        return
    if not settings.on_demand_programs:
        raise PlanError(
            f"{_where(profile, entry['key'])}: {settings.on_demand_refusal} Remove it: the server then runs all the "
            "time."
        )
    if settings.port_last - settings.port_first >= DISTANCE:
        raise PlanError(
            f"{_where(profile, entry['key'])}: the port range {settings.port_first} to {settings.port_last} is too "
            f"wide for it, as the server listens {DISTANCE} ports from its own: make it narrower than that."
        )


def _where(profile: Mapping[str, Any], key: str) -> str:
    return f'profile "{profile["name"]}" ({profile["source"]}), {key}.start.on_demand'


def listens_at(selected: Selected, port: int, settings: Settings) -> tuple[str, int]:
    """Return the address and the port of a server's own command line."""
    return (settings.host, port) if selected.on_demand is None else (INNER_HOST, inner_port(port))


def socket_environment(selected: Selected, port: int) -> dict[str, str]:
    """Return the variables of a server behind a socket; none for another one."""
    return {} if selected.on_demand is None else {PUBLIC_PORT: str(port)}


def on_demand_part(
    draft: Draft, port: int, profile: Mapping[str, Any], settings: Settings, host: Host
) -> dict[str, Any]:
    """Return the part of a server's record that says how it is started on demand; empty for another one.

    Raises PlanError where another process holds the port behind its socket.
    """
    wish, inner = draft.selected.on_demand, inner_port(port)
    if wish is None:
        return {}
    listener, process = host.listeners.get(inner), host.running.get(draft.name)
    own = () if process is None else (process.pid, *process.children)
    if listener is not None and listener.pid is not None and listener.pid not in own:
        raise PlanError(
            f"{_where(profile, draft.selected.key)}: behind port {port} the server {draft.name} listens on port "
            f"{inner}, which is held by {listener.holder}: stop that process, or set another port for the server."
        )
    return {"on_demand": {**wish, "port": inner, **settings.on_demand_programs}}


def limits_part(
    servers: Iterable[Server], profile: Mapping[str, Any], settings: Settings, host: Host
) -> dict[str, Any]:
    """Return the part of a plan with the limits for starts on demand, which the record keeps; empty without any."""
    if not any("on_demand" in server and server["action"] != "stop" for server in servers):
        return {}
    gpus = [max(0, gpu.total_bytes - FIT_MARGIN_BYTES) for gpu in host.gpus]
    limits = {"budget_bytes": profile.get("memory_budget_bytes"), "gpu_bytes": gpus}
    return {"on_demand": {**limits, "overcommit": settings.memory_overcommit}}
