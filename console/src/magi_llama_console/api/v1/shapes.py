# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of answers about the fleet. Sizes are bytes, times RFC 3339 in UTC; null is unknown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Source = Literal["events", "sweep", "gateway", "status", "none"]
HostState = Literal["ok", "degraded", "failed", "unreachable", "unknown"]
ServerState = Literal[
    "ready",
    "sleeping",
    "starting",
    "loading",
    "hung",
    "unhealthy",
    "wrong_identity",
    "running",
    "stopping",
    "restarting",
    "stopped",
    "failed",
    "absent",
]
Bytes = Annotated[int | None, Field(description="Bytes; null where unknown.")]


class Answer(BaseModel):
    """An answer about state: when the oldest part of it was true, and where that is known from."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    as_of: Annotated[str | None, Field(description="RFC 3339; null where nothing is known yet.")]
    source: Annotated[
        Source, Field(description="events of runs, a sweep of /health, the gateways, a status job, or none.")
    ]


class Memory(BaseModel):
    """Bytes: what there is, what is free, and what the deployed servers are planned with."""

    total: Bytes
    free: Bytes
    planned: Bytes


class Gpu(Memory):
    index: int
    name: str | None


class Host(BaseModel):
    name: str
    address: str
    groups: list[str]
    state: Annotated[
        HostState, Field(description="ok: all servers are ready; degraded: some; failed: none; or not reachable.")
    ]
    as_of: str | None
    source: Source
    stale_since: Annotated[
        str | None, Field(description="Since when nothing is known of it; null where that is recent.")
    ]
    servers_total: int
    servers_ready: int
    ram: Memory
    gpus: list[Gpu]
    drift: Annotated[
        list[str] | None, Field(description="What is not as the profile wants it; null where nothing has looked yet.")
    ]
    drift_since: str | None
    profile: str | None
    deployed_at: Annotated[
        str | None,
        Field(description="When the last site, rollout or rollback ended that has changed it, of any controller."),
    ]
    job: Annotated[str | None, Field(description="The id of the job that runs there.")]


class Hosts(Answer):
    hosts: list[Host]


class Server(BaseModel):
    """A deployed server. rss_bytes is RAM, vram_bytes memory of GPUs, planned_bytes what was planned of both."""

    host: str
    name: str
    model_id: str
    display_name: str | None
    tier: str | None
    port: int
    pid: int | None
    state: str
    is_ready: bool
    uptime_seconds: int | None
    rss_bytes: Bytes
    vram_bytes: Bytes
    planned_bytes: Bytes
    planned_ram_bytes: Bytes
    planned_vram_bytes: Bytes
    restarts: int
    tokens_per_second: float | None
    reason: Annotated[str | None, Field(description="Why it is not ready.")]
    fix: Annotated[str | None, Field(description="What to do about that.")]


class Servers(Answer):
    servers: list[Server]


class Slot(BaseModel):
    """A place for one request."""

    id: int
    is_processing: bool
    n_ctx: int | None


class Footprint(BaseModel):
    """Bytes of RAM and of GPU memory, with what they are made of."""

    model_config = ConfigDict(extra="allow")

    ram_bytes: Bytes
    vram_bytes: Bytes


class Rate(BaseModel):
    """Tokens per second as a run has measured it."""

    at: str
    tokens_per_second: float


class ServerDetail(Answer, Server):
    """A server with what only the plan that deployed it and its last start know."""

    argv: Annotated[
        list[str] | None, Field(description="Its command line; null where the console did not see its plan.")
    ]
    environment_names: Annotated[list[str] | None, Field(description="Names of its environment, never values.")]
    slots_total: Annotated[int | None, Field(description="Requests that it processes at once.")]
    slots: Annotated[list[Slot] | None, Field(description="Each of them now; null where the server does not show it.")]
    context_size: Annotated[int | None, Field(description="Tokens that one request can have.")]
    log: Annotated[list[str], Field(description="The last lines that runs have reported of it, oldest first.")]
    log_tail: Annotated[
        list[str] | None,
        Field(
            description="The last lines of its own log, of the newest status job that was asked for them; null for the"
            " role read."
        ),
    ]
    log_tail_as_of: Annotated[str | None, Field(description="When they were read.")]
    rates: Annotated[list[Rate], Field(description="Its speed in the runs that the console has seen, oldest first.")]
    estimate: Annotated[Footprint | None, Field(description="The plan's estimate of its memory, by part.")]
    truth: Annotated[Footprint | None, Field(description="Its memory as llama-server itself reports it.")]
    revision: Annotated[str | None, Field(description="Digest of all that it was launched with.")]


class Model(BaseModel):
    id: str
    display_name: str | None
    hosts: list[str]
    kind: str | None
    tier: str | None
    architecture: str | None
    size_bytes: Bytes
    path: str | None
    context_length: int | None
    provenance: Annotated[
        dict[str, Any] | None,
        Field(description="Checksum, source and licence, of the manifest and of the file itself."),
    ]


class Rejected(BaseModel):
    host: str
    path: str
    reason: str


class Models(Answer):
    models: list[Model]
    rejected: list[Rejected]


class Fit(BaseModel):
    model_id: str
    needs_bytes: int
    basis: Annotated[Literal["plan", "file"], Field(description="Estimated by a plan, or only the size of its file.")]
    is_on_host: Annotated[bool, Field(description="Whether the host has the model's file.")]
    fits: Literal["gpu", "ram", "no", "unknown"]


class HostCapacity(BaseModel):
    host: str
    ram_free_bytes: Bytes
    vram_free_bytes: list[int | None]
    models: list[Fit]


class Capacity(Answer):
    hosts: list[HostCapacity]
