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
# A deviation of the whole that is warned of. The log counts in MiB, so small servers deviate more.
TOLERANCE = 0.10
TOLERANCE_BYTES = 32 * MIB

_ROW = Fields({"kind": str, "name": str, **{f"{part}_bytes": int for part in PARTS}})
MEMORY = Fields({"planned_bytes": int, "loaded_bytes": int, "rows": [_ROW]})


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
    devices = max(1, sum(1 for size in memory.get("gpu_bytes") or [] if size))
    parts = ("weights_bytes", "kv_bytes", "recurrent_bytes", "output_bytes")
    planned = sum(int(memory.get(part, 0)) for part in parts) + devices * int(memory.get("compute_bytes", 0))
    return {
        "planned_bytes": planned,
        "loaded_bytes": sum(row[f"{part}_bytes"] for row in rows for part in PARTS),
        "rows": rows,
    }


def deviation(memory: Mapping[str, Any]) -> float | None:
    """Return by what part of the estimate the truth is above (or below) it; None if it is within the tolerance."""
    planned, loaded = memory["planned_bytes"], memory["loaded_bytes"]
    off = loaded - planned
    if planned <= 0 or abs(off) <= max(TOLERANCE * planned, TOLERANCE_BYTES):
        return None
    return float(off / planned)


def deviation_warning(name: str, memory: Mapping[str, Any]) -> str | None:
    """Return a warning if the server took another amount of memory than planned; None if it did not."""
    share = deviation(memory)
    if share is None:
        return None
    return (
        f"{name}: it has loaded {format_bytes(memory['loaded_bytes'])}, the plan estimated "
        f"{format_bytes(memory['planned_bytes'])} ({share:+.0%}): leave more memory free, and report the model's "
        "architecture and parameters."
    )
