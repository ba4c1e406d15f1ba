# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Whether servers that are to run on a GPU do: llama-server that finds none is healthy, and many times slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._core.text import format_bytes
from .outcome import Outcome

# Of what is planned: a server that holds less has layers on the CPU.
LEAST_SHARE = 0.8


def planned_vram(server: Mapping[str, Any]) -> int:
    """The GPU memory that a server is to hold, in bytes; 0 where it is not to be checked."""
    if str(server.get("require_gpu")) == "false":
        return 0
    return int((server.get("memory") or {}).get("vram_bytes", 0))


def is_on_cpu(server: Mapping[str, Any], held_bytes: int) -> bool:
    """Whether a server that is to be checked holds too little GPU memory for what was planned."""
    planned = planned_vram(server)
    # A flag may move weights off the GPU, and the plan not know how many.
    is_known = "vram_bytes" not in (server.get("memory") or {}).get("estimates", ())
    return planned > 0 and held_bytes < (LEAST_SHARE * planned if is_known else 1)


def with_servers_on_cpu(
    outcomes: Sequence[Outcome],
    servers: Sequence[Mapping[str, Any]],
    held: Mapping[int, int] | None,
    children: Mapping[int, Sequence[int]],
) -> list[Outcome]:
    """Return the outcomes; ready servers that hold less of the GPUs than planned count as failed (on_cpu).

    held are the bytes by pid, None where no tool says it: a server that requires a GPU then fails, others pass.
    children are the pids below a server's.
    """
    by_name = {str(server["name"]): server for server in servers}
    return [_judged(outcome, by_name.get(outcome.name, {}), held, children) for outcome in outcomes]


def _judged(
    outcome: Outcome,
    server: Mapping[str, Any],
    held: Mapping[int, int] | None,
    children: Mapping[int, Sequence[int]],
) -> Outcome:
    planned = planned_vram(server)
    if not outcome.is_ready or outcome.pid is None or not planned:
        return outcome
    if held is None:
        if str(server.get("require_gpu")) != "true":
            return outcome
        detail = "no tool (nvidia-smi) says whether it runs on a GPU, and servers_require_gpu is true"
    else:
        has = sum(held.get(pid, 0) for pid in (outcome.pid, *children.get(outcome.pid, ())))
        if not is_on_cpu(server, has):
            return outcome
        detail = f"runs on the CPU: it holds {format_bytes(has)} of GPU memory, planned are {format_bytes(planned)}"
    fix = (
        "look at its log for the driver's error (journalctl), and at what else is on the GPU (nvidia-smi); "
        "servers_require_gpu: false accepts it"
    )
    return replace(outcome, state="on_cpu", is_ready=False, is_settled=True, detail=detail, fix=fix)
