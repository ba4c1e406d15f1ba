# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The status of a host's servers as metrics, for what llama-server's own /metrics does not say."""

from __future__ import annotations

import calendar
import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .._core.argv import flag_value
from .._core.run_lock import Held
from .._core.version import COLLECTION_VERSION
from .._deployment.host_status import HostStatus
from .._health.on_cpu import is_on_cpu
from .exposition import Family, Labels

# Returns (file system, free bytes, size) of a folder. Raises OSError.
SizeOf = Callable[[str], "tuple[int, int, int]"]
# All that a status document may have.
STATES = (
    "ready",
    "starting",
    "loading",
    "hung",
    "unhealthy",
    "wrong_identity",
    "unprotected",
    "stopping",
    "restarting",
    "sleeping",
    "stopped",
    "failed",
    "absent",
)
SERVER = "magi_llama_server"
# Of a server's status, by its key; a value that is unknown has no sample.
_GAUGES = {
    "is_ready": ("ready", "Whether it answers requests."),
    "uptime_seconds": ("uptime_seconds", "Age of its process."),
    "rss_bytes": ("rss_bytes", "Resident memory of its process."),
    "vram_bytes": ("vram_bytes", "GPU memory that it holds."),
    "planned_vram_bytes": ("planned_vram_bytes", "GPU memory that was planned for it."),
    "restart_pending": ("restart_pending", "Whether its launch config is another one than it was started with."),
    "tokens_per_second": ("probed_tokens_per_second", "Speed of generation when it was last probed with a few tokens."),
}


def server_labels(server: Mapping[str, Any], profile: str | None) -> dict[str, str]:
    """What identifies a deployed server in each of its samples."""
    return {
        "server": str(server["name"]),
        "model": str(server["model_id"]),
        "tier": str(server.get("tier") or ""),
        "profile": str(profile or ""),
        "generation": str(server.get("generation", 0)),
    }


def status_families(found: HostStatus, intended: Mapping[str, str]) -> list[Family]:
    """The metrics of all servers. intended is what each is to be, started or stopped."""
    families: dict[str, Family] = {}

    def add(name: str, text: str, labels: Labels, value: Any, kind: str = "gauge") -> None:
        if value is not None:
            families.setdefault(name, Family(f"{SERVER}_{name}", kind, text)).add(labels, float(value))

    for server, entry in zip(found.servers, found.status["servers"]):
        labels = server_labels(server, found.record["profile"])
        add("info", "A deployed server.", {**labels, **_about(entry)}, 1)
        for state in STATES:
            add("state", "Its state: 1 for the one that it is in.", {**labels, "state": state}, entry["state"] == state)
        for key, (name, text) in _GAUGES.items():
            add(name, text, labels, entry.get(key))
        wanted = intended.get(str(server["name"]), "started") == "started"
        add("intended", "Whether it is meant to run.", labels, wanted)
        add("on_demand", "Whether its first request starts it.", labels, bool(entry.get("on_demand")))
        text = "Restarts after a crash since its last deliberate start."
        add("restarts_total", text, labels, entry["restarts"], "counter")
        memory = server.get("memory") or {}
        add("planned_memory_bytes", "Memory that was planned for it, RAM and GPU.", labels, memory.get("total_bytes"))
        limit = server.get("memory_max_bytes")
        add("memory_max_bytes", "RAM at which the service manager ends it (MemoryMax).", labels, limit)
        on_cpu = entry.get("vram_bytes") is not None and is_on_cpu(server, entry["vram_bytes"])
        add("on_cpu", "Whether it is to run on a GPU, and holds too little of its memory.", labels, on_cpu)
        drifted = str(server["name"]) in found.drift
        add("drift", "Whether it does not run as it is deployed.", labels, drifted)
        add("stuck_stop", "Whether one SIGTERM did not end it at its last stop.", labels, "stuck_stop" in entry)
    return list(families.values())


def _about(entry: Mapping[str, Any]) -> dict[str, str]:
    device = entry.get("device") or ("GPU" if entry.get("planned_vram_bytes") else "CPU")
    build = entry.get("build")
    return {"kind": str(entry.get("kind") or ""), "device": str(device), "build": "" if build is None else str(build)}


def host_families(found: HostStatus, lock: Held | None, now: float, size_of: SizeOf | None = None) -> list[Family]:
    """The metrics of the host itself. lock is the run lock, now the time of the look in seconds since 1970."""
    free = Family("magi_llama_models_free_bytes", "gauge", "Free disk space where models are.")
    size = Family("magi_llama_models_size_bytes", "gauge", "Size of the file system where models are.")
    for folder, (free_bytes, size_bytes) in model_disks(found.servers, size_of or disk_size).items():
        free.add({"folder": folder}, free_bytes)
        size.add({"folder": folder}, size_bytes)
    others = set(found.drift) - {str(server["name"]) for server in found.servers}
    version = {"version": COLLECTION_VERSION}
    return [
        _single("exporter_info", "The exporter.", 1, version),
        _single("collection_timestamp_seconds", "When the servers were last looked at.", now),
        _single("servers", "Servers that are deployed.", len(found.servers)),
        _single("host_drift", "Launch configs and servers on the host that are not as deployed.", len(others)),
        _single("run_lock_held", "Whether a run is changing the host.", lock is not None),
        _lock_age(lock, now),
        free,
        size,
    ]


def _lock_age(lock: Held | None, now: float) -> Family:
    family = Family("magi_llama_run_lock_age_seconds", "gauge", "Since when a run has held the host, while one does.")
    if lock is not None:
        # Written by this host in this form; an older version of the collection may have written none.
        with contextlib.suppress(ValueError):
            family.add({}, max(0.0, now - calendar.timegm(time.strptime(lock.run.since, "%Y-%m-%d %H:%M:%S UTC"))))
    return family


def _single(name: str, text: str, value: float, labels: Labels | None = None) -> Family:
    return Family(f"magi_llama_{name}", "gauge", text, [(labels or {}, float(value))])


def disk_size(folder: str) -> tuple[int, int, int]:
    """Return the file system of a folder, its free bytes for other users than root, and its size. Raises OSError."""
    found = os.statvfs(folder)
    return os.stat(folder).st_dev, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def model_disks(servers: Iterable[Mapping[str, Any]], size_of: SizeOf) -> dict[str, tuple[int, int]]:
    """Free bytes and size of each file system with models, by the first folder there; unreadable ones are left out."""
    found: dict[int, tuple[str, int, int]] = {}
    for folder in sorted({os.path.dirname(path) for server in servers if (path := _model(server["argv"]))}):
        try:
            device, free, size = size_of(folder)
        except OSError:
            continue
        found.setdefault(device, (folder, free, size))
    return {folder: (free, size) for folder, free, size in found.values()}


def _model(argv: Sequence[str]) -> str | None:
    return flag_value(list(argv), "--model")
