# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What processes hold of GPUs, from the vendor's own tool."""

from __future__ import annotations

import re
from collections.abc import Callable

MIB = 1024 * 1024
NVIDIA_APPS_COMMAND = [
    "nvidia-smi",
    "--query-compute-apps=gpu_uuid,pid,used_memory",
    "--format=csv,noheader,nounits",
]
# Where vendors' tools are that are not on PATH: in containers, under WSL and where ROCm is installed.
TOOL_FOLDERS = ("/usr/local/nvidia/bin", "/usr/lib/wsl/lib", "/opt/rocm/bin")


def parse_apps(text: str) -> list[tuple[str, int, int]]:
    """The lines of NVIDIA_APPS_COMMAND as (the card's uuid, pid, bytes); lines without a figure are left out."""
    rows = (re.fullmatch(r"([\w-]{1,80}), *([0-9]{1,9}), *([0-9]{1,9})", line.strip()) for line in text.splitlines())
    return [(row[1], int(row[2]), int(row[3]) * MIB) for row in rows if row]


def held_bytes(tool: Callable[[list[str]], str | None]) -> dict[int, int] | None:
    """The bytes that each process holds on all GPUs, by pid; None where no tool says it.

    tool returns what a command prints, None where it is missing or fails.
    """
    text = tool(NVIDIA_APPS_COMMAND)
    if text is None:
        return None
    held: dict[int, int] = {}
    for _uuid, pid, size in parse_apps(text):
        held[pid] = held.get(pid, 0) + size
    # A tool in another PID namespace lists no process, or one without a figure.
    return None if not held and text.strip() else held
