# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""How many cores the servers of a host may use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Set

_CPU = "/sys/devices/system/cpu"
_NODE = "/sys/devices/system/node"


def usable_cores(
    numa_mask: str = "",
    *,
    allowed: Set[int] | None = None,
    cpu: str = _CPU,
    node: str = _NODE,
    cgroup: str = "/sys/fs/cgroup",
) -> int:
    """Return the physical cores of this host or container, at least one.

    Counted are the cores of the processors that the process may run on and, with a NUMA mask such as 0,2-3, that belong
    to these nodes. Two hardware threads of a core count once: both together compute hardly more than one. A control
    group's limit on processor time lowers the number.
    """
    processors = set(os.sched_getaffinity(0) if allowed is None else allowed)
    if numa_mask:
        on_nodes = {number for one in _numbers(numa_mask) for number in _numbers(_read(f"{node}/node{one}/cpulist"))}
        # A mask of nodes that this host does not have is refused by systemd, not here.
        processors = processors & on_nodes or processors
    cores = {_siblings(cpu, number) for number in processors}
    limit = _quota(cgroup)
    return max(1, len(cores) if limit is None else min(len(cores), int(limit)))


def _siblings(cpu: str, number: int) -> frozenset[int]:
    """Return the processors of the same core."""
    text = _read(f"{cpu}/cpu{number}/topology/thread_siblings_list")
    return frozenset(_numbers(text)) | {number}


def _quota(cgroup: str) -> float | None:
    """Return the processors that the control group may use at once; None without a limit."""
    found = re.fullmatch(r"([0-9]{1,15}) ([0-9]{1,15})", _read(f"{cgroup}/cpu.max").strip())
    if not found:
        quota = _read(f"{cgroup}/cpu/cpu.cfs_quota_us").strip()
        period = _read(f"{cgroup}/cpu/cpu.cfs_period_us").strip()
        found = re.fullmatch(r"([0-9]{1,15}) ([0-9]{1,15})", f"{quota} {period}")
    if not found or not int(found[2]):
        return None
    return int(found[1]) / int(found[2])


def _numbers(text: str) -> Iterable[int]:
    """Return the numbers of a list such as 0,2-5."""
    found: set[int] = set()
    for part in text.strip().split(","):
        ends = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part.strip())
        if ends:
            found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return sorted(found)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read(65536)
    except OSError:
        return ""
