# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The units of a server that its first request starts.

systemd listens at the server's port. The first connection starts the proxy, which wants the server: it is started, and
is healthy, before the proxy passes connections on. After a time without any the proxy ends, and systemd stops the
server, which nothing needs any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core.addresses import unit_addresses
from .._core.exchange import authority
from .._core.places import listening_place
from .quoting import systemd_argv

# Not the prefix of servers, whose names could be anything behind it.
WAKE_PREFIX = "magi-llama.wake."
# In the state directory.
PROGRAM = "on_demand.py"
# For what other servers need to make room, besides the server's own start.
ADMIT_SECONDS = 120


def socket_unit(server: str) -> str:
    """The unit that listens at a server's port."""
    return f"{WAKE_PREFIX}{server}.socket"


def proxy_unit(server: str) -> str:
    """The unit that passes connections on to a server."""
    return f"{WAKE_PREFIX}{server}.service"


def wake_names(units: Iterable[str]) -> list[str]:
    """The names of the servers of such units; other units are left out."""
    found = (unit[len(WAKE_PREFIX) :].rpartition(".") for unit in units if unit.startswith(WAKE_PREFIX))
    return list(dict.fromkeys(name for name, _dot, kind in found if kind in ("socket", "service")))


def systemd_on_demand(server: Mapping[str, Any], state_dir: str) -> dict[str, Any]:
    """The settings of a server's unit that make it start and stop with its proxy."""
    part, name = server["on_demand"], str(server["name"])
    seconds = int(server["max_startup_time"])
    # Without the variables that mark a server's process.
    ask = ["/usr/bin/env", "-i", str(part["python"]), "-I", os.path.join(state_dir, PROGRAM)]
    return {
        # As root, since it may stop other servers: it trusts nothing that the servers' user can write.
        "ExecCondition": "+" + _command([*ask, "admit", state_dir, name]),
        "ExecStartPost": _command([*ask, "wait", str(part["port"]), str(seconds)]) + " $MAINPID",
        # The next request starts it again. While the proxy still waits for a start, this does nothing.
        "ExecStopPost": f"+-systemctl stop --no-block --job-mode=fail {proxy_unit(name)}",
        "TimeoutStartSec": seconds + ADMIT_SECONDS,
    }


def systemd_proxy(server: Mapping[str, Any], state_dir: str) -> dict[str, Any]:
    """The command of a server's proxy."""
    part = server["on_demand"]
    idle = [] if part["idle_stop"] is None else [f"--exit-idle-time={int(part['idle_stop'])}s"]
    ask = [str(part["python"]), "-I", os.path.join(state_dir, PROGRAM), "pass", str(part["port"])]
    return {"ExecStart": _command([*ask, str(part["proxy"]), *idle, authority(*listening_place(server))])}


def systemd_listen(server: Mapping[str, Any], allow_addresses: Sequence[str] = ()) -> dict[str, Any]:
    """Where a server's socket listens, and whom it accepts: settings of the server's unit do not count for it."""
    host = {"localhost": "127.0.0.1"}.get(str(server["host"]), str(server["host"]))
    access = unit_addresses(host, server["argv"], allow_addresses) if allow_addresses else {}
    return {"ListenStream": authority(host, int(server["port"])), **access}


def _command(words: list[str]) -> str:
    # One line: systemd_argv begins another one with each flag.
    return systemd_argv(words).replace(" \\\n    ", " ")
