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

from .._core.files import write_atomic
from .._services.base import ServiceDriver
from .admin_socket import AdminSocket, AdminSocketError, parse_map
from .files import Change, Places
from .fleet import GatewayError
from .members import change_servers

# The name of its unit or program.
SERVICE = "gateway"
START_SECONDS = 20.0


def apply(
    driver: ServiceDriver, places: Places, change: Change, before: Mapping[str, str], after: Mapping[str, str]
) -> str:
    """Bring the running process to the configuration in use; returns how. Raises GatewayError.

    What cannot be changed while it runs is done by a reload, which lets the old process finish its requests.
    """
    status = driver.status([SERVICE])[SERVICE]
    admin = AdminSocket(places.socket)
    if status.state != "running" or status.pid is None:
        return _start(driver, places, admin)
    if change.how in ("maps", "servers"):
        try:
            _change_maps(admin, places, change.files, after)
            if change.how == "servers":
                change_servers(admin, before["haproxy.cfg"], after["haproxy.cfg"])
            return change.how
        except AdminSocketError:
            # It is done by a reload, which needs nothing of the running process.
            pass
    if change.how == "nothing":
        return "nothing"
    return _reload(status.pid, places, admin)


def _start(driver: ServiceDriver, places: Places, admin: AdminSocket) -> str:
    with contextlib.suppress(FileNotFoundError):
        # After a stop its states would be those of another time.
        os.unlink(places.states)
    driver.reload([SERVICE])
    faults = driver.start([SERVICE])
    if SERVICE not in faults and admin.wait_for_worker(None, START_SECONDS) is not None:
        return "start"
    log = " | ".join(driver.log_tail(SERVICE, 5))
    raise GatewayError(f"HAProxy did not start: {faults.get(SERVICE, '')} {log}".strip())


def _reload(pid: int, places: Places, admin: AdminSocket) -> str:
    before = admin.pid()
    if before is not None:
        # As data for the next process only: the socket belongs to the gateway's user.
        write_atomic(places.states, admin.ask("show servers state").encode(), 0o644)
    os.kill(pid, signal.SIGUSR2)
    if admin.wait_for_worker(before, START_SECONDS) is None:
        raise GatewayError(
            f"HAProxy (PID {pid}) did not take the new configuration within {START_SECONDS:g} s and continues with the "
            "old one: see its log."
        )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(places.states)
    return "reload"


def _change_maps(admin: AdminSocket, places: Places, names: Sequence[str], after: Mapping[str, str]) -> None:
    for name in names:
        if name.endswith(".map"):
            admin.replace_map(f"{places.config}/{name}", parse_map(after.get(name, "")))
