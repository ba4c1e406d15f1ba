# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the programs of a container end: requests under way are answered first, for a limited time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import read_record
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import AdminSocket, AdminSocketError
from ansible_collections.magi.llama.plugins.module_utils._gateway.files import Places
from ansible_collections.magi.llama.plugins.module_utils._health.idle import (
    Look,
    idleness_text,
    look_at,
    wait_until_idle,
)
from ansible_collections.magi.llama.plugins.module_utils._services.supervisor_driver import SupervisorDriver

from .logs import show

GATEWAY = "gateway"
# The stop time-out if none is recorded, and HAProxy's stopwaitsecs.
STOP_TIMEOUT = 30


def end_servers(state: Path, seconds: float) -> None:
    """End servers when all have answered their requests, or so many seconds are over: then with the plan's time-out."""
    try:
        record = read_record(str(state))["servers"]
    except MagiError as error:
        show(f"requests are not waited for: {error}")
        record = []
    wait_for_requests(
        [str(server["name"]) for server in record], lambda names: look_at(str(state), record, names), seconds
    )
    end_services(state, max((server.get("stop_timeout", STOP_TIMEOUT) for server in record), default=STOP_TIMEOUT))


def end_gateway(state: Path, seconds: float) -> None:
    """End HAProxy when no request is in it, or so many seconds are over."""
    admin = AdminSocket(Places(str(state)).socket)
    wait_for_requests([GATEWAY], lambda _names: {GATEWAY: requests_in(admin)}, seconds)
    end_services(state, STOP_TIMEOUT)


def requests_in(admin: AdminSocket) -> Look:
    """The requests that HAProxy's servers have or that wait for one of them."""
    try:
        rows = admin.statistics().values()
    except AdminSocketError:
        return Look(0, "it is not running", is_running=False)
    return Look(sum(int(row.get(name) or 0) for row in rows for name in ("scur", "qcur")))


def wait_for_requests(
    names: Sequence[str], look: Callable[[Sequence[str]], Mapping[str, Look]], seconds: float
) -> None:
    """Wait until each is idle, for so many seconds, and show which are not."""
    for found in wait_until_idle(names, look, clock=time.monotonic, sleep=time.sleep, timeout=seconds):
        if not found.idle:
            show(f"{found.name}: {idleness_text(found.as_dict())}; it is ended")


def end_services(state: Path, seconds: int) -> None:
    """End a supervisord and its programs as a stop by the playbooks does: TERM, TERM again, KILL."""
    try:
        ended = SupervisorDriver(str(state)).end(seconds)
    except MagiError as error:
        # The engine ends what is left.
        show(str(error))
        return
    for stopped in ended.values():
        if stopped.pid:
            show(f"{stopped.name} has ended by {stopped.signal} after {stopped.seconds:g} s")
