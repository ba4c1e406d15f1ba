# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The servers of backends that exist already: added, changed and removed while HAProxy runs."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from .admin_socket import AdminSocket, AdminSocketError

# A dynamic server takes nothing from the configuration's default-server.
CHECKS = "check inter 1s fastinter 200ms downinter 500ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down"
# Words of the configuration that have no meaning for a dynamic server.
STATIC_ONLY = ("init-addr", "last,libc,none")
FIRST_CHECK_SECONDS = 3.0

# (backend, server)
Key = tuple[str, str]


def servers_in(config: str) -> dict[Key, list[str]]:
    """The servers of a configuration, each with the words behind its name: address, maxconn, slots."""
    found: dict[Key, list[str]] = {}
    backend = ""
    for line in config.splitlines():
        words = line.split()
        if line.startswith("backend "):
            backend = words[1]
        elif line.startswith("  server "):
            found[backend, words[1]] = words[2:]
    return found


def change_servers(admin: AdminSocket, before: str, after: str) -> None:
    """Add and remove servers as two configurations differ. Raises AdminSocketError for what only a reload can do.

    A server that is added is used after its first check. One that is removed gets no new requests, and is deleted
    when its last one is over: at once, when it comes back, or by the next reload.
    """
    old, new = servers_in(before), servers_in(after)
    if any(old[key] != new[key] for key in old.keys() & new.keys()):
        raise AdminSocketError("a server's address or number of slots changed, which needs a reload")
    added = sorted(new.keys() - old.keys())
    for key in added:
        _add(admin, key, new)
    _wait_for_checks(admin, added)
    for backend, name in added:
        admin.do(f"set server {backend}/{name} state ready")
    for backend, name in sorted(old.keys() - new.keys()):
        admin.do(f"set server {backend}/{name} state maint")
        admin.ask(f"del server {backend}/{name}")


def _add(admin: AdminSocket, key: Key, servers: Mapping[Key, list[str]]) -> None:
    backend, name = key
    words = " ".join(word for word in servers[key] if word not in STATIC_ONLY)
    # It is unknown, or left before.
    admin.ask(f"del server {backend}/{name}")
    answer = admin.ask(f"add server {backend}/{name} {words} {CHECKS}")
    if "New server registered" not in answer:
        raise AdminSocketError(f"HAProxy refused the server {backend}/{name}: {answer.strip():.200}")
    admin.ask(f"enable health {backend}/{name}")
    # Once it is ready it counts as up until its first check.
    admin.do(f"set server {backend}/{name} state drain")


def _wait_for_checks(admin: AdminSocket, keys: Collection[Key]) -> None:
    """Return when each of these servers was checked, with any outcome, or after FIRST_CHECK_SECONDS."""
    deadline = time.monotonic() + FIRST_CHECK_SECONDS
    while keys and time.monotonic() < deadline:
        checks = admin.checks()
        if all(checks.get(key, "") not in ("", "INI") for key in keys):
            return
        time.sleep(0.05)
