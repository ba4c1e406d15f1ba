# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The status of a host's servers, from the record, the service manager and the servers themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .._core.gpu_processes import held_bytes
from .._core.processes import processes
from .._health.drift import drift
from .._health.observations import for_status, started_configs
from .._health.pending import config_digests, restart_pending
from .._health.probe import probe_all
from .._health.status import status_json
from .._health.watched import watched_for_status
from .._services.base import ServiceDriver
from .._services.table import driver_for
from .config_drift import config_drift
from .record import chosen, read_record

Value = TypeVar("Value")
# Returns what a command prints, None where it is missing or fails.
Tool = Callable[[list[str]], "str | None"]


@dataclass(frozen=True)
class HostStatus:
    """What server_info returns: record is the deployment, servers its chosen part, status the document.

    drift are the reasons by server, or by path of a launch config.
    """

    record: Mapping[str, Any]
    servers: Sequence[Mapping[str, Any]]
    driver: ServiceDriver
    status: Mapping[str, Any]
    drift: Mapping[str, str]


def host_status(state_dir: str, tool: Tool, *, names: Sequence[str] = (), deep: bool = False) -> HostStatus:
    """Look at the named servers, all of them where no name is given; deep probes each with a few tokens.

    Raises RecordError, ObservedError, UnknownServerError and errors of the service manager.
    """
    record = read_record(state_dir)
    servers = chosen(record, names)
    driver = driver_for(record, state_dir)
    statuses = driver.status([server["name"] for server in servers])
    running = [server for server in servers if statuses[server["name"]].state == "running"]
    pids = {name: status.pid for name, status in statuses.items()}
    probes = probe_all(running, pids, deep=deep)
    found = processes(state_dir)
    configs = config_drift(state_dir, record)
    digests = config_digests(state_dir, record["service_manager"], pids)
    pending = restart_pending(started_configs(state_dir), pids, digests)
    seen = for_status(state_dir)
    # No tool is asked where no server is planned on a GPU.
    held = held_bytes(tool) if any(server.get("memory", {}).get("vram_bytes") for server in servers) else None
    sleeping = [name for name, status in statuses.items() if status.state == "sleeping"]
    status = status_json(servers, statuses, probes, found, seen, pending, held, record["profile"])
    watched = watched_for_status(state_dir)
    for entry in status["servers"]:
        entry.update({"watchdog": watched[entry["name"]]} if entry["name"] in watched else {})
    differs = drift(servers, pids, _only(names, found), _only(names, configs), sleeping)
    return HostStatus(record, servers, driver, status, differs)


def _only(names: Sequence[str], by_name: Mapping[str, Value]) -> dict[str, Value]:
    """The part of a mapping that is about the named servers, all of it where no name is given."""
    return {name: value for name, value in by_name.items() if not names or name in names}
