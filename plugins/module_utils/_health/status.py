# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The status of servers as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.argv import flag_value
from .._core.documents import NULL, NUMBER, Document, Fields
from .._core.processes import Process
from .._services.base import ServiceStatus
from .breakdown import MEMORY
from .endpoint import ENDPOINT, endpoint
from .observations import STUCK_STOP
from .probe import Probe, Server
from .watched import FOUND

_SERVER = Fields(
    {
        "name": str,
        "model_id": str,
        "display_name": (str, NULL),
        "port": int,
        "pid": (int, NULL),
        "is_ready": bool,
        "tier": (str, NULL),
        "state": str,
        "uptime_seconds": (int, NULL),
        "rss_bytes": (int, NULL),
        "restarts": int,
    },
    {
        "threads": (int, NULL),
        "restart_pending": bool,
        # Its first request starts it, so nothing that only looks may send it one.
        "on_demand": bool,
        "vram_bytes": (int, NULL),
        "planned_vram_bytes": int,
        "device": (str, NULL),
        "memory": MEMORY,
        "tokens_per_second": (*NUMBER, NULL),
        "stuck_stop": STUCK_STOP,
        "watchdog": FOUND,
        "log": [str],
        **ENDPOINT,
        # What only the controller knows.
        "host": str,
        "address": str,
        "url": (str, NULL),
    },
)
STATUS = Document(
    "status",
    1,
    Fields(
        {"collection_version": str, "total_servers": int, "ready_servers": int, "servers": [_SERVER]},
        {"host": str, "address": str},
    ),
)


def status_json(
    servers: Sequence[Server],
    statuses: Mapping[str, ServiceStatus],
    probes: Mapping[str, Probe],
    running: Mapping[str, Process],
    seen: Mapping[str, Mapping[str, Any]],
    pending: Sequence[str] = (),
    held: Mapping[int, int] | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """The status document of all servers. seen are their observations, pending those with an old launch config.

    profile is the one that they are deployed with. held are the bytes of GPU memory by pid, None where no tool says it.
    """
    entries = [
        _status_entry(server, statuses[server["name"]], probes.get(server["name"]), running.get(server["name"]))
        for server in servers
    ]
    for server, entry in zip(servers, entries):
        entry.update(endpoint(server, profile))
        entry.update({"on_demand": True} if server.get("on_demand") else {})
        entry.update(_on_gpu(server, running.get(server["name"]), held))
        found = seen.get(entry["name"], {})
        entry["restart_pending"] = entry["name"] in pending
        if "stuck_stop" in found:
            entry["stuck_stop"] = found["stuck_stop"]
        answer = probes.get(entry["name"])
        entry["tokens_per_second"] = answer.tokens_per_second if answer else None
        # What was seen of an earlier process says nothing about this one.
        if entry["pid"] is not None and found.get("pid") == entry["pid"]:
            entry.update({"memory": found["memory"]} if "memory" in found else {})
            entry["tokens_per_second"] = entry["tokens_per_second"] or found.get("tokens_per_second")
    return STATUS.stamp(
        {
            "total_servers": len(entries),
            "ready_servers": sum(entry["is_ready"] for entry in entries),
            "servers": entries,
        }
    )


def _status_entry(
    server: Server, status: ServiceStatus, answer: Probe | None, process: Process | None
) -> dict[str, Any]:
    state = status.state
    if answer is not None and state == "running":
        # A process that does not listen yet has just started.
        state = "starting" if answer.state == "not_listening" else answer.state
    if state == "sleeping" and status.exit_text is not None:
        state = "failed"
    # Another user's process shows neither to a user without root.
    unseen = None if status.pid else 0
    return {
        "name": server["name"],
        "model_id": server["model_id"],
        "display_name": server.get("display_name"),
        "port": server["port"],
        "pid": status.pid,
        # One that sleeps answers too, after its start.
        "is_ready": state in ("ready", "sleeping"),
        "tier": server.get("tier"),
        "state": state,
        "uptime_seconds": int(process.uptime_seconds) if process else unseen,
        "rss_bytes": process.rss_bytes if process else unseen,
        "restarts": status.restarts,
        "threads": _threads(server),
    }


def _on_gpu(server: Server, process: Process | None, held: Mapping[int, int] | None) -> dict[str, Any]:
    """What the server holds of GPUs (None where it is unknown), what was planned, and on which; empty without any."""
    planned = int((server.get("memory") or {}).get("vram_bytes", 0))
    if not planned:
        return {}
    known = process is not None and held is not None
    pids = (process.pid, *process.children) if process else ()
    return {
        "vram_bytes": sum((held or {}).get(pid, 0) for pid in pids) if known else None,
        "planned_vram_bytes": planned,
        "device": (server.get("env") or {}).get("MAGI_LLAMA_DEVICES"),
    }


def _threads(server: Server) -> int | None:
    """Return the threads that the server was given; None where it takes llama-server's default."""
    value = flag_value(server.get("argv") or [], "--threads")
    return int(value) if value is not None and value.isdecimal() else None
