# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a plan is made from besides registry, profile and runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.errors import MagiError
from .._core.processes import Listener, Memory, Process
from .._core.values import address_error
from .gpu import Gpu
from .variables import set_ports

Server = dict[str, Any]


class PlanError(MagiError):
    """A plan that cannot be made; nothing has been touched."""


def _unchanged(_server: str, path: str) -> str:
    return path


@dataclass(frozen=True)
class Settings:
    """The role's settings: where servers listen, keep their state and what they are launched with.

    key_path gives the place at which a server, by its name, finds the API key file. manager_triggers is what else a
    server of this service manager takes over with a new process only. ports are set for servers, by name.
    without_downtime says that gateways are to be kept supplied during a change; served_here has the number
    of servers that they see ready on this host, by model, served_elsewhere the models that they see on others, and
    allow_downtime permits a model to be away.
    """

    state_dir: str
    service_manager: str
    port_first: int = 8080
    port_last: int = 8099
    host: str = "127.0.0.1"
    api_key_file: str | None = None
    key_path: Callable[[str, str], str] = _unchanged
    allow_powerful: bool = False
    stop_timeout: int = 30
    memory_overcommit: bool = False
    require_gpu: str = "auto"
    move_on_conflict: bool = False
    restart_triggers: Mapping[str, Any] = field(default_factory=dict)
    manager_triggers: Sequence[Any] = ()
    cpu_expected_busy: int | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    strict: bool = False
    prune: bool = False
    # The programs that start servers on demand, or why this service manager cannot.
    on_demand_programs: Mapping[str, str] = field(default_factory=dict)
    on_demand_refusal: str = ""
    without_downtime: bool = False
    served_here: Mapping[str, int] = field(default_factory=dict)
    served_elsewhere: frozenset[str] = frozenset()
    allow_downtime: bool = False


def settings_of(
    given: Mapping[str, Any], manager_triggers: Sequence[Any], key_path: Callable[[str, str], str] = _unchanged
) -> Settings:
    """The settings by the arguments of the module server_plan."""
    error = address_error("host", str(given["host"]))
    if error:
        raise PlanError(error)
    return Settings(
        state_dir=given["state_dir"],
        service_manager=given["service_manager"],
        port_first=given["port_range_start"],
        port_last=given["port_range_end"],
        host=given["host"],
        api_key_file=given["api_key_file"],
        key_path=key_path,
        allow_powerful=given["allow_powerful"],
        stop_timeout=given["stop_timeout"],
        memory_overcommit=given["memory_overcommit"],
        require_gpu=given["require_gpu"],
        move_on_conflict=given["move_on_conflict"],
        restart_triggers=given["restart_triggers"],
        manager_triggers=manager_triggers,
        cpu_expected_busy=given["cpu_expected_busy"],
        ports=set_ports(given["ports"]),
        strict=given["strict"],
        prune=given["prune"],
        without_downtime=given["without_downtime"],
        served_here=given["served_here"],
        served_elsewhere=frozenset(given["served_elsewhere"]),
        allow_downtime=given["allow_downtime"],
    )


@dataclass(frozen=True)
class Host:
    """What the machine has and what runs on it: read once, before the plan.

    unsupervised are running servers that their service manager does not track, with the reasons. cores are the physical
    ones that servers may use; None where they are not to be shared. remembered are ports of servers that left, by name.
    pending are servers that run with an earlier launch config, with the reasons; restarts_pending says whether that is
    reason enough to restart. sockets are the ports at which the service manager listens for servers on demand, by name.
    ready_seconds are those from a server's last start until it was ready, by name.
    """

    memory: Memory
    gpus: Sequence[Gpu] = ()
    record: Sequence[Server] = ()
    running: Mapping[str, Process] = field(default_factory=dict)
    listeners: Mapping[int, Listener] = field(default_factory=dict)
    unsupervised: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, str] = field(default_factory=dict)
    restarts_pending: bool = False
    cores: int | None = None
    gpu_groups: Sequence[str] = ()
    remembered: Mapping[str, int] = field(default_factory=dict)
    sockets: Mapping[str, int] = field(default_factory=dict)
    ready_seconds: Mapping[str, float] = field(default_factory=dict)
