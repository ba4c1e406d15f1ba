# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The servers' own API keys while these are replaced: a server takes those that its file had when it was started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .._core.processes import Process
from .._launch.api_keys import stamp_of
from .fleet import GatewayError


class HostKeys(NamedTuple):
    """The keys in a host's file, and those that servers take that were started before the file changed."""

    now: Sequence[str] = ()
    before: Sequence[str] = ()

    def of(self, server: Mapping[str, Any]) -> Sequence[str]:
        """The keys that a server of the host's entry takes, those first that it will take after its restart."""
        if server.get("old_keys") and self.before:
            return sorted(self.before, key=lambda key: key not in self.now)
        return self.now


def keys_of(keys: Mapping[str, HostKeys]) -> Callable[[str, Mapping[str, Any]], Sequence[str]]:
    """Look up the keys that a server of a host takes."""
    return lambda host, server: keys.get(host, HostKeys()).of(server)


def with_old_keys(servers: Iterable[Mapping[str, Any]], running: Mapping[str, Process]) -> list[str]:
    """The names of the servers of a host's record whose process was started before their key file changed."""
    return [
        server["name"]
        for server in servers
        if server["name"] in running
        and (server.get("api_key_file") or "--api-key-file" in running[server["name"]].argv)
        and (_has_another_revision(server, running[server["name"]]) or _has_changed(server))
    ]


def _has_another_revision(server: Mapping[str, Any], process: Process) -> bool:
    return bool(server.get("revision")) and process.env.get("MAGI_LLAMA_REVISION") != server["revision"]


def _has_changed(server: Mapping[str, Any]) -> bool:
    """Whether the file is another one than at the last plan, in which the server was started."""
    try:
        found = stamp_of(os.stat(server.get("api_key_file") or ""))
    except OSError:
        return False
    return bool(server.get("api_key_stamp")) and found != server["api_key_stamp"]


def next_keys(known: HostKeys, now: Sequence[str], entry: Mapping[str, Any]) -> HostKeys:
    """What is known of a host's keys after a run that found these in its file, and its entry."""
    if not any(server.get("old_keys") for server in entry["servers"]):
        return HostKeys(now)
    # Until the last of its servers has been restarted; a new gateway knows nothing of what was before.
    return HostKeys(now, known.before or known.now)


def refuse_replaced(host: str, keys: HostKeys, entry: Mapping[str, Any]) -> None:
    """Raise GatewayError where a host's servers are being restarted, and the new ones share no key with the old ones.

    A gateway sends one key to all servers of a model, so some of them would be left out.
    """
    # One on demand that sleeps, or that has been woken since, is not being restarted.
    servers = [server for server in entry["servers"] if server.get("old_keys") or not server.get("on_demand")]
    if not keys.before or {*keys.before} & {*keys.now}:
        return
    if not any(server.get("old_keys") for server in servers):
        return
    if any(bool(server.get("draining")) == bool(server.get("old_keys")) for server in servers):
        raise GatewayError(
            f"The API key file of {host} (servers_api_key_file) has none of the keys that its running servers take, "
            "and gateways send one key to all servers of a model: write the old key to it again, below the new one, "
            "run this again, and remove the old key in a second run."
        )


def read_host_keys(content: Mapping[str, Any]) -> dict[str, HostKeys]:
    """The keys by host of a gateway's file of them."""
    found = {}
    for host, keys in content.items():
        lists = keys if isinstance(keys, Mapping) else {"now": keys}
        found[str(host)] = HostKeys(*([*map(str, lists.get(name, ()))] for name in HostKeys._fields))
    return found


def written_keys(keys: Mapping[str, HostKeys]) -> dict[str, dict[str, list[str]]]:
    """The content of that file."""
    return {host: {name: [*part] for name, part in one._asdict().items() if part} for host, one in keys.items()}
