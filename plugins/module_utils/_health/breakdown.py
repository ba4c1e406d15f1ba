# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The memory that a server has taken by its own account, against the estimate of the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._core.documents import Fields
from .._core.text import clean_text, format_bytes
from .._services.server_log import parsed

MIB = 1024 * 1024
EVENT = "fit_memory_breakdown"
MAX_ROWS = 64
MAX_MIB = 1 << 32
PARTS = ("model", "context", "compute")
# The kind of a GPU's row; all others are RAM.
DEVICE = "device"
# A deviation of the whole that is warned of. The log counts in MiB, so small servers deviate more.
TOLERANCE = 0.10
TOLERANCE_BYTES = 32 * MIB

_ROW = Fields({"kind": str, "name": str, **{f"{part}_bytes": int for part in PARTS}})
# The first two are of RAM and GPU memory in all. What of it is on GPUs has keys of its own, where something was planned
# there; what an earlier version has noted has none.
MEMORY = Fields(
    {"planned_bytes": int, "loaded_bytes": int, "rows": [_ROW]}, {"planned_gpu_bytes": int, "loaded_gpu_bytes": int}
)


def loaded_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the rows of the last memory breakdown in a log, in bytes; empty if it has none or a damaged one."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        event = parsed(line) if EVENT in line else None
        if event is not None and event.get("type") == EVENT:
            rows = _rows(event.get("data"))
    return rows


def _rows(data: Any) -> list[dict[str, Any]]:
    found = data.get("rows") if isinstance(data, dict) and data.get("unit") == "MiB" else None
    if not isinstance(found, list) or not _are_rows(found):
        return []
    return [_row(row) for row in found[:MAX_ROWS]]


def _are_rows(found: list[Any]) -> bool:
    return all(
        isinstance(row, dict) and all(isinstance(row.get(part), int) and 0 <= row[part] < MAX_MIB for part in PARTS)
        for row in found
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    names = {key: clean_text(str(row.get(key, "")), 64) for key in ("kind", "name")}
    return {**names, **{f"{part}_bytes": row[part] * MIB for part in PARTS}}


def compared(memory: Mapping[str, Any], lines: Iterable[str]) -> dict[str, Any] | None:
    """Return estimate and truth of a server; None if its log has no breakdown. memory is the plan's estimate.

    Both are what llama.cpp counts: weights, caches and compute buffers, without the process and the GPU's runtime.
    """
    rows = loaded_rows(lines)
    if not rows:
        return None
    loaded = sum(_size(row) for row in rows)
    if not memory.get("vram_bytes"):
        parts = ("weights_bytes", "kv_bytes", "recurrent_bytes", "compute_bytes", "output_bytes")
        planned = sum(int(memory.get(part, 0)) for part in parts)
        return {"planned_bytes": planned, "loaded_bytes": loaded, "rows": rows}
    on_gpus = _planned_on_gpus(memory)
    in_ram = memory["ram_bytes"] - memory["host_bytes"] + memory["output_bytes"] + memory.get("inputs_bytes", 0)
    return {
        "planned_bytes": max(0, in_ram) + on_gpus,
        "loaded_bytes": loaded,
        "planned_gpu_bytes": on_gpus,
        "loaded_gpu_bytes": sum(_size(row) for row in rows if row["kind"] == DEVICE),
        "rows": rows,
    }


def _size(row: Mapping[str, Any]) -> int:
    return sum(int(row[f"{part}_bytes"]) for part in PARTS)


def _planned_on_gpus(memory: Mapping[str, Any]) -> int:
    """What is planned on all GPUs, without what their runtime takes on each."""
    devices = max(1, sum(1 for size in memory.get("gpu_bytes") or [] if size))
    runtime = max(0, int(memory["gpu_fixed_bytes"]) - int(memory["compute_bytes"]))
    return max(0, int(memory["vram_bytes"]) - devices * runtime)


def ram_part(memory: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the bytes of RAM as planned and as loaded; None where they were noted together with those of GPUs."""
    if "planned_gpu_bytes" not in memory and any(row["kind"] == DEVICE and _size(row) for row in memory["rows"]):
        return None
    planned = memory["planned_bytes"] - memory.get("planned_gpu_bytes", 0)
    return planned, memory["loaded_bytes"] - memory.get("loaded_gpu_bytes", 0)


def gpu_part(memory: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the bytes on all GPUs as planned and as loaded; None if nothing was planned there."""
    return (memory["planned_gpu_bytes"], memory["loaded_gpu_bytes"]) if "planned_gpu_bytes" in memory else None


def deviation(planned: int, loaded: int) -> float | None:
    """Return by what part of the estimate the truth is above (or below) it; None if it is within the tolerance."""
    off = loaded - planned
    if planned <= 0 or abs(off) <= max(TOLERANCE * planned, TOLERANCE_BYTES):
        return None
    return float(off / planned)


def deviation_warning(name: str, memory: Mapping[str, Any]) -> str | None:
    """Return a warning if the server took another amount of RAM or of GPU memory than planned; None if it did not."""
    found = []
    for what, part in (("RAM", ram_part(memory)), ("GPU memory", gpu_part(memory))):
        share = deviation(*part) if part else None
        if part and share is not None:
            planned, loaded = (format_bytes(size) for size in part)
            found.append(f"it has loaded {loaded} of {what}, the plan estimated {planned} ({share:+.0%})")
    if not found:
        return None
    advice = "leave more memory free, and report the model's architecture and parameters."
    return f"{name}: {', and '.join(found)}: {advice}"
