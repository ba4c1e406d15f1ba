# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by all parts of the bench: table rows, timed runs of Ansible, and inventories."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from support import checkout

ROOT = Path(__file__).resolve().parents[2]
# A test interrupts a bench; its folder is not the user's.
CACHE = Path(os.environ.get("MAGI_BENCH_CACHE", ROOT / ".cache" / "bench"))
BIN = Path(sys.executable).parent
FIRST_PORT = checkout.ports("bench")[0]
STARTED = time.monotonic()

# These would change the result: the collection uses them as defaults, and Python would compile in every process.
_FOREIGN = re.compile(r"^(MAGI_|MODEL_|ANSIBLE_|LLAMA_|REGISTRY_PATH$|PYTHONDONTWRITEBYTECODE$)")


class BenchError(Exception):
    """A complete sentence for the user."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table. The goal applies to the ratio; a line without a goal is informative."""

    part: str
    what: str
    ours: float | None
    unit: str
    peer: str = ""
    other: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    note: str = ""


def faster(part: str, what: str, ours: float, other: float, peer: str, goal: float | None = None, **more: Any) -> Row:
    """How many times faster (or smaller) ours is than the peer: at least `goal`."""
    ratio = other / ours
    met = None if goal is None else ratio >= goal
    return Row(part, what, ours, more.pop("unit", "s"), peer, other, ratio, f"≥ {goal:g}×" if goal else "", met, **more)


def within(part: str, what: str, ours: float, other: float, peer: str, goal: float | None = None, **more: Any) -> Row:
    """Ours as a multiple of the peer: at most `goal`."""
    ratio = ours / other
    met = None if goal is None else ratio <= goal
    text = f"≤ {goal:g}×" if goal else ""
    return Row(part, what, ours, more.pop("unit", "s"), peer, other, ratio, text, met, **more)


def figure(part: str, what: str, ours: float, unit: str, limit: float | None = None, note: str = "") -> Row:
    """A figure of ours alone, with or without a limit."""
    met = None if limit is None else ours <= limit
    return Row(part, what, ours, unit, goal="" if limit is None else f"≤ {limit:g} {unit}", met=met, note=note)


def skipped(part: str, what: str, why: str) -> Row:
    return Row(part, what, None, "", note=f"skipped: {why}")


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:.{digits}f} {unit}".rstrip()


def table(rows: Iterable[Row]) -> str:
    lines = [("what", "ours", "peer", "", "ratio", "goal", "met")]
    for row in rows:
        met = {None: "", True: "yes", False: "NO"}[row.met]
        ratio = "" if row.ratio is None else f"{_number(row.ratio, '')}×"
        other = "" if row.other is None else _number(row.other, row.unit)
        lines.append((row.what, _number(row.ours, row.unit), other, row.peer, ratio, row.goal, met))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for number, line in enumerate(lines):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number and (note := list(rows)[number - 1].note):
            text.append(f"    {note}")
    return "\n".join(text)


def write_json(path: Path, rows: Iterable[Row]) -> None:
    machine = {"cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0], "load": os.getloadavg()[0]}
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


# --- measuring -------------------------------------------------------------------------------------------------------


def alternate(rounds: int, **functions: Callable[[], float]) -> dict[str, list[float]]:
    """Call the functions in turn for `rounds` rounds, so that other load on the machine affects all of them."""
    values: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name, function in functions.items():
            values[name].append(function())
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {got[-1]:.3g}" for name, got in values.items()))
    return values


def spread(values: Iterable[float]) -> str:
    """Best, median and number of measurements, for a note."""
    listed = sorted(values)
    return f"best {listed[0]:.3g}, median {median(listed):.3g}, worst {listed[-1]:.3g} of {len(listed)}"


def controller_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return {
        **kept,
        "PATH": f"{BIN}:{kept['PATH']}",
        "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'collections'}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_NOCOLOR": "1",
        **more,
    }


@dataclass(frozen=True)
class Run:
    """A run of Ansible: wall and processor time, its tasks as (name, start, end), and each host's changed count."""

    seconds: float
    processor: float
    tasks: list[tuple[str, float, float]]
    changed: dict[str, int]
    peak_bytes: int
    output: str
    # Over all hosts.
    module_calls: int = 0

    def seconds_of(self, *names: str) -> float:
        """Seconds from the start of the first to the end of the last of these tasks."""
        found = [task for task in self.tasks if task[0].rpartition(" : ")[2] in names]
        if not found:
            raise BenchError(
                f"The run has no task {' or '.join(names)}; its tasks: {[task[0] for task in self.tasks]}."
            )
        return max(task[2] for task in found) - min(task[1] for task in found)


def ansible(*argv: str, check: bool = True, **environment: str) -> Run:
    """Run an Ansible command with the controller's environment."""
    with tempfile.TemporaryDirectory(prefix="magi-bench-") as folder:
        times, calls = Path(folder) / "tasks.json", Path(folder) / "calls"
        with open(Path(folder) / "output", "w+", encoding="utf-8") as output:
            began = time.monotonic()
            process = subprocess.Popen(
                [str(BIN / argv[0]), *argv[1:]],
                cwd=ROOT,
                env=controller_environment(
                    ANSIBLE_CALLBACK_PLUGINS=str(ROOT / "tests" / "bench" / "callbacks"),
                    ANSIBLE_CALLBACKS_ENABLED="task_times",
                    BENCH_TASK_TIMES=str(times),
                    BENCH_MODULE_CALLS=str(calls),
                    **environment,
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - began
            output.seek(0)
            text = output.read()
        if check and process.returncode:
            tail = "\n".join(text.strip().splitlines()[-40:])
            raise BenchError(f"`{' '.join(argv)}` exited with code {process.returncode}:\n{tail}")
        tasks = json.loads(times.read_text()) if times.exists() else []
        count = calls.stat().st_size if calls.exists() else 0
    changed = {name: int(count) for name, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", text, re.MULTILINE)}
    used = usage.ru_utime + usage.ru_stime
    return Run(seconds, used, [tuple(task) for task in tasks], changed, usage.ru_maxrss * 1024, text, count)


def playbook(path: str, inventory: Path, *arguments: str, check: bool = True, **environment: str) -> Run:
    return ansible("ansible-playbook", "-i", str(inventory), str(ROOT / path), *arguments, check=check, **environment)


def unchanged(run: Run) -> Run:
    """Return the run if it changed nothing; raise BenchError otherwise."""
    if not run.changed or any(run.changed.values()):
        raise BenchError(f"A run that should change nothing reports changed={run.changed}:\n{run.output[-4000:]}")
    return run


# --- inventories -----------------------------------------------------------------------------------------------------


def local_inventory(
    folder: Path, variables: Mapping[str, Any], profiles: Mapping[str, Any], *, host: str = "localhost"
) -> Path:
    """An inventory of this machine with profiles next to it, in the bench's folder."""
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    connection = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    write_yaml(folder / "hosts.yml", {"all": {"hosts": {host: {**connection, **variables}}}})
    for name, profile in profiles.items():
        write_yaml(folder / "profiles" / f"{name}.yml", profile)
    return folder / "hosts.yml"


def write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def runtime_variables() -> dict[str, Any]:
    """The llama-server that `make binaries` provides."""
    return {
        "runtime_install_method": "existing",
        "runtime_binary_path": str((ROOT / ".cache" / "bin" / "llama-server").resolve()),
        "runtime_cache_path": str(CACHE / "runtime.json"),
    }
