# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The servers of backends that exist already: added, drained, brought back and removed while HAProxy runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from .admin_socket import AdminSocket, AdminSocketError
from .server_lines import ADDRESSES, CHECKS, DISABLED, Key, coming, servers_in, without_disabled

# Words of the configuration that have no meaning for a dynamic server.
STATIC_ONLY = (*ADDRESSES, DISABLED)
POLL_SECONDS = 0.05
# A process that has just begun has checked each server after this: the interval of checks and their timeout.
CHECKED_SECONDS = 3.0


def change_servers(admin: AdminSocket, before: str, after: str, ready_timeout: float) -> list[Key]:
    """Change servers as two configurations differ; returns those that are not up. Raises AdminSocketError.

    The error means that only a reload can do it. A server that is added or comes back is used after its first check,
    which is waited for before any server leaves, for ready_timeout seconds at most. One that leaves finishes its
    requests and gets no new ones; where it is removed, it is deleted when its last one is over: at once, when it comes
    back, or by the next reload.
    """
    old, new = servers_in(before), servers_in(after)
    if any(without_disabled(old[key]) != without_disabled(new[key]) for key in old.keys() & new.keys()):
        raise AdminSocketError("a server's address or number of slots changed, which needs a reload")
    for key in sorted(new.keys() - old.keys()):
        _add(admin, key, new)
    arriving = coming(before, after)
    for key in arriving:
        _bring_in(admin, key)
    late = wait_until_up(admin, arriving, ready_timeout)
    for backend, name in sorted(coming(after, before)):
        admin.do(f"set server {backend}/{name} state maint")
    for backend, name in sorted(old.keys() - new.keys()):
        admin.do(f"set server {backend}/{name} state maint")
        admin.ask(f"del server {backend}/{name}")
    return late


def _add(admin: AdminSocket, key: Key, servers: Mapping[Key, list[str]]) -> None:
    """Add a server, out of use: a dynamic one begins in maintenance, and takes nothing from default-server."""
    backend, name = key
    words = " ".join(word for word in servers[key] if word not in STATIC_ONLY)
    # It is unknown, or left before.
    admin.ask(f"del server {backend}/{name}")
    answer = admin.ask(f"add server {backend}/{name} {words} {CHECKS}")
    if "New server registered" not in answer:
        raise AdminSocketError(f"HAProxy refused the server {backend}/{name}: {answer.strip():.200}")


def _bring_in(admin: AdminSocket, key: Key) -> None:
    """Use a server from its next successful check on.

    A server that leaves maintenance counts as up, by checks of another time: it is declared down while it drains. Its
    checks are off where it is new, or hung before.
    """
    server = "/".join(key)
    admin.do(f"enable health {server}")
    for command in ("state drain", "health down", "state ready"):
        admin.do(f"set server {server} {command}")


def wait_until_up(admin: AdminSocket, keys: Iterable[Key], seconds: float) -> list[Key]:
    """Return which of these servers have not passed their check after so many seconds; at once where all have."""
    deadline = time.monotonic() + seconds
    late = list(keys)
    while late:
        up = admin.servers_up()
        late = [key for key in late if key not in up]
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    return late


def serving_servers(admin: AdminSocket, seconds: float = CHECKED_SECONDS) -> list[str]:
    """Return the names of the servers that are up and not draining. Raises AdminSocketError.

    Those that a new process has not checked yet are waited for, for so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        up, unchecked = admin.servers_by_check()
        if not unchecked or time.monotonic() >= deadline:
            return sorted(name for _backend, name in up)
        time.sleep(POLL_SECONDS)
