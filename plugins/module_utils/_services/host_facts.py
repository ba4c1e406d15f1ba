# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Determine the service manager and user of the servers on a host: the fact llama_host."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Mapping
from typing import Any

from .._core.errors import MagiError
from .table import all_managers, choose_manager, find_manager

# The comment (GECOS) of users that the role servers creates.
USER_COMMENT = "magi.llama"


class HostError(MagiError):
    """Raised if the connecting user cannot launch servers on this host."""


def host_facts(given: Mapping[str, Any], find_program: Callable[[str], str | None]) -> dict[str, Any]:
    """Return the fact llama_host for the arguments of the module host_facts. Raises MagiError.

    find_program returns the path of a program on this host.
    """
    state_dir = given["state_dir"]
    manager = choose_manager(given["service_manager"])
    # Report a refusal here, before anything is changed.
    manager.check(state_dir)
    watchdog = given.get("watchdog", "off")
    if watchdog != "off" and not manager.has_timers:
        timed = " or ".join(one.name for one in all_managers() if one.has_timers)
        raise HostError(
            f"servers_watchdog is {watchdog}, and {manager.name}, which runs the servers of this host, has no timers. "
            f"Set servers_watchdog to off for this host, or servers_service_manager to {timed}."
        )
    found: dict[str, Any] = {}
    for one in all_managers():
        candidates = [given.get(f"{one.program}_path"), find_program(one.program)] if one.program else []
        found.update(one.facts(state_dir, candidates))
    is_missing = manager.is_missing(found)
    return {
        "service_manager": manager.name,
        "service_manager_missing": is_missing,
        "sets_groups": manager.sets_groups,
        "root": os.geteuid() == 0,
        "api_key_stamp": "",
        "hands_over_keys": False,
        **found,
        **(manager.install_facts() if is_missing else {}),
        **_account(given["user"]),
    }


def _account(user: str) -> dict[str, Any]:
    """The user that the servers run as: the given user if connected as root, otherwise the connecting user."""
    root = os.geteuid() == 0
    name = user if root else pwd.getpwuid(os.geteuid()).pw_name
    try:
        entry = pwd.getpwnam(name)
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        return {"user": name, "group": name, "user_exists": False, "user_is_ours": False, "user_ids": []}
    return {
        "user": name,
        "group": group,
        "user_exists": True,
        "user_is_ours": root and entry.pw_gecos == USER_COMMENT,
        # A container knows no names: those of the user, its group, and its further groups.
        "user_ids": [entry.pw_uid, *dict.fromkeys([entry.pw_gid, *sorted(os.getgrouplist(name, entry.pw_gid))])],
    }


def refuse_user(facts: Mapping[str, Any], allow_root: bool) -> None:
    """Raise HostError if the servers would run as root without permission, or only root may write their configs."""
    if facts["root"] and facts["user_exists"] and pwd.getpwnam(facts["user"]).pw_uid == 0 and not allow_root:
        raise HostError(
            f"servers_user is {facts['user']}: an attacker who takes over llama-server would have the whole host. "
            "Set servers_user to an unprivileged user, or servers_allow_root to true."
        )
    if find_manager(facts["service_manager"]).needs_root and not facts["root"]:
        rootless = " or ".join(manager.name for manager in all_managers() if not manager.needs_root)
        raise HostError(
            f"This host runs {facts['service_manager']}, whose launch configs only root may write: run with --become "
            f"(or ansible_become in the inventory), or set servers_service_manager to {rootless}."
        )
