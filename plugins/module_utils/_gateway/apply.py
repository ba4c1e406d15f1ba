# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Apply a configuration to the running HAProxy with the least effect: its maps, its servers, or a reload."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._core.files import write_atomic
from .._services.base import ServiceDriver
from .admin_socket import AdminSocket, AdminSocketError, parse_map
from .files import Change, Places
from .fleet import GatewayError
from .members import change_servers, wait_until_up
from .server_lines import Key, coming, states_for

# The name of its unit or program.
SERVICE = "gateway"
KEYS, GRANTS = "keys.map", "grants.map"
START_SECONDS = 20.0


@dataclass(frozen=True)
class Applied:
    """How a configuration was applied, and which of the servers that came with it have not passed their check."""

    how: str
    not_ready: Sequence[Key] = ()


def apply(
    driver: ServiceDriver,
    places: Places,
    change: Change,
    before: Mapping[str, str],
    after: Mapping[str, str],
    ready_timeout: float,
) -> Applied:
    """Bring the running process to the configuration in use. Raises GatewayError.

    What cannot be changed while it runs is done by a reload, which lets the old process finish its requests. Servers
    that come have ready_timeout seconds to pass their check.
    """
    old, new = before.get("haproxy.cfg", ""), after["haproxy.cfg"]
    status = driver.status([SERVICE])[SERVICE]
    admin = AdminSocket(places.socket)
    if status.state != "running" or status.pid is None:
        _start(driver, places, admin)
        return Applied("start", wait_until_up(admin, coming(old, new), ready_timeout))
    if change.how in ("maps", "servers"):
        try:
            for name, content in map_steps(change.files, before, after):
                admin.replace_map(f"{places.config}/{name}", content)
            late = change_servers(admin, old, new, ready_timeout) if change.how == "servers" else []
            return Applied(change.how, late)
        except AdminSocketError:
            # It is done by a reload, which needs nothing of the running process.
            pass
    if change.how == "nothing":
        return Applied("nothing")
    _reload(status.pid, places, admin, new)
    return Applied("reload", wait_until_up(admin, coming(old, new), ready_timeout))


def _start(driver: ServiceDriver, places: Places, admin: AdminSocket) -> None:
    with contextlib.suppress(FileNotFoundError):
        # After a stop its states would be those of another time.
        os.unlink(places.states)
    driver.reload([SERVICE])
    faults = driver.start([SERVICE])
    if SERVICE not in faults and admin.wait_for_worker(None, START_SECONDS) is not None:
        return
    log = " | ".join(driver.log_tail(SERVICE, 5))
    raise GatewayError(f"HAProxy did not start: {faults.get(SERVICE, '')} {log}".strip())


def _reload(pid: int, places: Places, admin: AdminSocket, config: str) -> None:
    # On a busy host it may take long to answer. Not knowing the old worker, its answers would pass for the new one's.
    before = admin.wait_for_worker(None, START_SECONDS)
    if before is None:
        raise GatewayError(
            f"HAProxy (PID {pid}) runs and has not answered on {places.socket} within {START_SECONDS:g} s, so it did "
            "not get the new configuration and keeps the old one: see its log, and run this again or restart it."
        )
    # As data for the next process only: the socket belongs to the gateway's user.
    write_atomic(places.states, states_for(config, admin.ask("show servers state")).encode(), 0o644)
    os.kill(pid, signal.SIGUSR2)
    if admin.wait_for_worker(before, START_SECONDS) is None:
        raise GatewayError(
            f"HAProxy (PID {pid}) did not take the new configuration within {START_SECONDS:g} s and continues with the "
            "old one: see its log."
        )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(places.states)


def map_steps(
    names: Sequence[str], before: Mapping[str, str], after: Mapping[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """The contents of changed maps, each of which requests see at once, in an order that treats no client wrongly.

    Keys of clients that are gone are out before anything else changes. Then every client, under its old and its new
    name, has what it had and what it will have, restrictions too; then the keys change, in one step: one that takes the
    place of another, or that has another name; and what is left over goes last.
    """
    maps = [name for name in names if name.endswith(".map")]
    old = {name: parse_map(before.get(name, "")) for name in maps}
    new = {name: parse_map(after.get(name, "")) for name in maps}
    others = [name for name in maps if name not in (KEYS, GRANTS)]
    grants = [GRANTS] if GRANTS in maps else []
    steps = []
    if KEYS in maps:
        stay = {*new[KEYS].values()}
        steps.append((KEYS, {key: name for key, name in old[KEYS].items() if key in new[KEYS] or name in stay}))
    # Who is restricted has grants, before and after.
    steps += [(name, {**old[name], **new[name]}) for name in (*grants, *others)]
    if KEYS in maps:
        steps.append((KEYS, new[KEYS]))
    steps += [(name, new[name]) for name in (*others, *grants)]
    found = []
    for name, content in steps:
        if content != old[name]:
            found.append((name, content))
            old[name] = content
    return found
