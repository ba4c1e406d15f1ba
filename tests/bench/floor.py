# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's own overhead: a playbook with as many calls of a module that does nothing as a run has made."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from bench.measure import CACHE, Row, Run, playbook, within, write_yaml


def floor(calls: int, inventory: Path, *arguments: str) -> Run:
    """Run it on the same hosts; each call is a task."""
    tasks = [{"name": f"Call {number + 1}", "ansible.builtin.ping": None} for number in range(calls)]
    play = {"name": "Call a module that does nothing", "hosts": "all", "gather_facts": False, "tasks": tasks}
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"floor-{calls}.yml"
    write_yaml(path, [play])
    return playbook(str(path), inventory, *arguments)


def above_floor(
    part: str, what: str, runs: list[Run], floors: list[Run], goal: float | None, *, added: float = 0.0
) -> Row:
    """Runs as a multiple of their floor, to which seconds are added that no run can save."""
    calls = runs[-1].module_calls
    also = f" and the servers' own start of {added:.1f} s" if added else ""
    peer = f"{calls} empty calls{' + start' if added else ''}"
    seconds = median(run.seconds for run in runs)
    lowest = median(run.seconds for run in floors) + added
    return within(part, what, seconds, lowest, peer, goal, note=f"{calls} module calls{also}")
