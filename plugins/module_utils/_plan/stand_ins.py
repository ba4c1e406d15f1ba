# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Stand-ins: servers that serve a model while its own server is restarted with another launch config.

A server keeps its name, its port and its unit through a change, as addresses of servers are a promise. So what runs
for the time of the change is a server of its own, with the new launch config and a port that is free.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .._core.digests import digest_of
from .inputs import Host, Server, Settings

SUFFIX = "surge"


def launch_revision(argv: Sequence[str], env: Mapping[str, str], settings: Settings) -> str:
    """A digest of all that a server takes over with a new process only."""
    launch = [
        list(argv),
        dict(env),
        settings.restart_triggers,
        settings.service_manager,
        *settings.manager_triggers,
    ]
    return digest_of(launch)[:12]


def stand_in_for(server: Server, port: int, settings: Settings, taken: Collection[str]) -> Server:
    """The stand-in of a planned server on another port. taken are names of other servers."""
    name = stand_in_name(str(server["name"]), taken)
    argv = _with_value(server["argv"], "--port", str(port))
    if settings.api_key_file:
        argv = _with_value(argv, "--api-key-file", settings.key_path(name, settings.api_key_file))
    env = {key: value for key, value in server["env"].items() if key != "MAGI_LLAMA_REVISION"}
    env["MAGI_LLAMA_SERVER"] = name
    revision = launch_revision(argv, env, settings)
    return {
        **server,
        "name": name,
        "port": port,
        "argv": argv,
        "env": {**env, "MAGI_LLAMA_REVISION": revision},
        "revision": revision,
        "stands_in_for": str(server["name"]),
    }


def stand_in_name(name: str, taken: Collection[str]) -> str:
    """The name of a server's stand-in, which no other server has."""
    mark = "-"
    while f"{name}{mark}{SUFFIX}" in taken:
        mark += "x"
    return f"{name}{mark}{SUFFIX}"


def free_port(wanted: int | None, used: Collection[int], settings: Settings, host: Host) -> int | None:
    """The port that is wanted if it is free, else the last free one of the range; None where all are taken.

    used are the ports of servers that run or are planned. New servers get the first free ones.
    """
    free = [
        port
        for port in range(settings.port_first, settings.port_last + 1)
        if port not in {*used, *settings.ports.values()} and (port not in host.listeners or port == wanted)
    ]
    return wanted if wanted in free else next(reversed(free), None)


def _with_value(argv: Sequence[str], flag: str, value: str) -> list[Any]:
    """A command line with another value of a flag that it has."""
    place = list(argv).index(flag) + 1
    return [*argv[:place], value, *argv[place + 1 :]]
