# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the console knows of hosts and servers: plain, frozen, and writable as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["events", "sweep", "gateway", "status", "none"]
HostState = Literal["ok", "degraded", "failed", "unreachable", "unknown"]
LAYOUT = 2
# With a measurement every ten minutes, those of a day.
MAX_RATES = 144
# The keys of a host that are kept apart.
MODELS = ("models", "rejected")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a host's RAM or of a GPU; None is unknown. planned_bytes is what the servers there are planned with."""

    total_bytes: int | None = None
    free_bytes: int | None = None
    planned_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of a host."""

    index: int
    name: str | None
    memory: Memory


@dataclass(frozen=True, slots=True)
class Server:
    """A deployed server. Sizes are bytes; None is unknown. state is that of the status document."""

    host: str
    name: str
    model_id: str
    port: int
    state: str
    is_ready: bool
    display_name: str | None = None
    tier: str | None = None
    kind: str | None = None
    pid: int | None = None
    uptime_seconds: int | None = None
    rss_bytes: int | None = None
    vram_bytes: int | None = None
    planned_bytes: int | None = None
    restarts: int = 0
    tokens_per_second: float | None = None
    reason: str | None = None
    fix: str | None = None
    # Where /health is asked.
    bind_address: str | None = None
    has_tls: bool = False
    # Its first request starts it: nothing that only looks may ask it.
    is_on_demand: bool = False
    # Of the plan that deployed it.
    argv: tuple[str, ...] | None = None
    environment_names: tuple[str, ...] | None = None
    revision: str | None = None
    estimate: Mapping[str, Any] | None = None
    # As llama-server reports its memory.
    truth: Mapping[str, Any] | None = None
    slots: int | None = None
    context_size: int | None = None
    # Tokens per second as runs have measured them: time and value, oldest first.
    rates: tuple[tuple[str, float], ...] = ()
    # The process whose speed the last of them is.
    rate_pid: int | None = None
    # The last lines of its log, and when they were read.
    log: tuple[str, ...] | None = None
    log_as_of: str | None = None

    @property
    def planned_ram_bytes(self) -> int | None:
        """What was planned of RAM, by the plan or else by what a status says of it."""
        if self.estimate and "ram_bytes" in self.estimate:
            return int(self.estimate["ram_bytes"])
        vram = self.planned_vram_bytes
        return None if self.planned_bytes is None or vram is None else max(0, self.planned_bytes - vram)

    @property
    def planned_vram_bytes(self) -> int | None:
        """What was planned of the memory of GPUs."""
        found = (self.estimate or {}).get("vram_bytes", (self.truth or {}).get("planned_gpu_bytes"))
        return None if found is None else int(found)

    def at_rate(self, at: str, rate: float | None) -> Server:
        """The server after a run has said its tokens per second.

        A run that has not measured them repeats what was measured of the same process: that is not a new point.
        """
        if not rate:
            return self
        found = dataclasses.replace(self, tokens_per_second=rate)
        last_at, last_rate = self.rates[-1] if self.rates else ("", None)
        is_same = rate == last_rate and self.pid is not None and self.pid == self.rate_pid
        if last_at >= at or is_same:
            return found
        return dataclasses.replace(found, rates=(*self.rates, (at, rate))[-MAX_RATES:], rate_pid=self.pid)


@dataclass(frozen=True, slots=True)
class Host:
    """A host, its servers by name, and the models that its registry has.

    as_of is when something last said how its servers are; is_known says whether a status or a deployment ever did.
    """

    name: str
    servers: Mapping[str, Server] = field(default_factory=dict)
    is_known: bool = False
    is_reachable: bool | None = None
    as_of: str | None = None
    source: Source = "none"
    # When a run last said that it has changed a server: what was seen before then is not how they are.
    changed_at: str | None = None
    # When a run that deploys last ended that has changed it: a rollback returns to what was before that run.
    deployed_at: str | None = None
    profile: str | None = None
    ram: Memory = Memory()
    gpus: tuple[Gpu, ...] = ()
    # What the profile would change, by server, and what does not run as it was deployed; None until something looked.
    drift_of_plan: Mapping[str, str] | None = None
    drift_of_status: Mapping[str, str] | None = None
    drift_since: str | None = None
    models: tuple[Mapping[str, Any], ...] = ()
    rejected: tuple[Mapping[str, Any], ...] = ()
    models_as_of: str | None = None

    @property
    def drift(self) -> dict[str, str] | None:
        """Reasons by server's name; None where nothing has compared them yet."""
        if self.drift_of_plan is None and self.drift_of_status is None:
            return None
        return {**(self.drift_of_plan or {}), **(self.drift_of_status or {})}

    @property
    def has_full_registry(self) -> bool:
        """Whether a scan has said everything of each model; events list them with few keys."""
        return self.models_as_of is not None and all("context_length" in one for one in self.models)

    @property
    def ready_servers(self) -> int:
        return sum(server.is_ready for server in self.servers.values())

    @property
    def state(self) -> HostState:
        """How the host is: all of its servers are ready, some, none; or it cannot be reached, or nothing is known."""
        if self.is_reachable is False:
            return "unreachable"
        if not self.is_known:
            return "unknown"
        ready = self.ready_servers
        if ready == len(self.servers):
            return "ok"
        return "degraded" if ready else "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """What a run in progress has sent so far: it counts when the run has ended, unless it only checked."""

    playbook: str
    profile: str | None
    is_check: bool
    events: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every host by name, the runs that have not ended by id, and the last event that was folded in."""

    hosts: Mapping[str, Host] = field(default_factory=dict)
    runs: Mapping[str, Run] = field(default_factory=dict)
    sequence: int = 0


def to_plain(fleet: Fleet) -> dict[str, Any]:
    """The fleet as JSON can hold it, without its hosts."""
    runs = {name: _fields(run) for name, run in fleet.runs.items()}
    return {"layout": LAYOUT, "runs": runs, "sequence": fleet.sequence}


def host_to_plain(host: Host) -> dict[str, Any]:
    """A host as JSON can hold it, without its models."""
    servers = {name: _fields(server) for name, server in host.servers.items()}
    gpus = [{**_fields(gpu), "memory": _fields(gpu.memory)} for gpu in host.gpus]
    kept = {key: value for key, value in _fields(host).items() if key not in MODELS}
    return {"layout": LAYOUT, **kept, "servers": servers, "ram": _fields(host.ram), "gpus": gpus}


def models_to_plain(host: Host) -> dict[str, Any]:
    """The rest of a host: it has many models, which seldom change."""
    return {key: list(getattr(host, key)) for key in MODELS}


def from_plain(
    data: Mapping[str, Any], hosts: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]]
) -> Fleet:
    """The fleet that these wrote; an empty one where another layout did, since events rebuild it."""
    if data.get("layout") != LAYOUT:
        return Fleet()
    return Fleet(
        {name: _host(host, models.get(name, {})) for name, host in hosts.items() if host.get("layout") == LAYOUT},
        {run: Run(**{**one, "events": tuple(one["events"])}) for run, one in data["runs"].items()},
        data["sequence"],
    )


def _fields(found: Any) -> dict[str, Any]:
    # Not dataclasses.asdict, which copies all that is inside: nothing of it is ever changed.
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}


def _host(data: Mapping[str, Any], models: Mapping[str, Any]) -> Host:
    return Host(
        **{
            **{key: value for key, value in data.items() if key != "layout"},
            "servers": {name: _server(server) for name, server in data["servers"].items()},
            "ram": Memory(**data["ram"]),
            "gpus": tuple(Gpu(**{**gpu, "memory": Memory(**gpu["memory"])}) for gpu in data["gpus"]),
            **{key: tuple(models.get(key, ())) for key in MODELS},
        }
    )


def _server(data: Mapping[str, Any]) -> Server:
    keys = ("argv", "environment_names", "log")
    lists = {key: tuple(data[key]) for key in keys if data.get(key) is not None}
    rates = tuple((str(at), float(rate)) for at, rate in data.get("rates", ()))
    return Server(**{**data, **lists, "rates": rates})
