# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Over SSH, on systemd nodes in podman: site.yml against the loop role, and one host against many."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import yaml
from bench.floor import above_floor, floor
from bench.measure import (
    CACHE,
    ROOT,
    BenchError,
    Row,
    Run,
    alternate,
    faster,
    figure,
    playbook,
    say,
    skipped,
    spread,
    unchanged,
    within,
    write_yaml,
)
from bench.runs import FLAGS, MANY, MODEL, MODELS, all_of, need_binaries, profile, profiled, seconds
from support import reaper
from support.gguf_files import small_model

PART = "fleet"
BED = "bench"
NODES = ROOT / "tests" / "nodes" / "nodes.py"
HOSTS = (1, 2, 5, 10, 20)
SERVERS_EACH = 4
MANY_MODELS = 5000
FOLDER = CACHE / "fleet"
INVENTORY = FOLDER / "hosts.yml"


# --- nodes -----------------------------------------------------------------------------------------------------------


def nodes(*arguments: str) -> None:
    done = subprocess.run([sys.executable, NODES, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"nodes.py {arguments[0]}: {done.stderr.strip()}")


@contextmanager
def bed(count: int, models: Path) -> Iterator[list[str]]:
    """Start `count` nodes and yield their names; remove them afterwards."""
    with reaper.cleanup_if_killed(sys.executable, NODES, "down", "--name", BED):
        try:
            say(f"starting {count} nodes")
            nodes("up", "--name", BED, f"forky={count}", "--models", str(models))
            yield write_inventory()
        finally:
            nodes("down", "--name", BED)


def write_inventory() -> list[str]:
    """The nodes with the variables of both sides; each node's number of servers is its profile."""
    content = yaml.safe_load((ROOT / ".cache" / "nodes" / BED / "hosts.yml").read_text())
    content["all"]["vars"] |= {
        "runtime_install_method": "existing",
        "runtime_binary_path": "/usr/bin/llama-server",
        "servers_keep_runtime": True,
        "registry_scan_paths": ["/models/few"],
        "loop_role_binary": "/usr/bin/llama-server",
        "loop_role_user": "nobody",  # codespell:ignore nobody
        "loop_role_flags": FLAGS,
        "loop_role_servers": [
            {"name": f"loop-{number:02}", "port": 8100 + number, "model": f"/models/few/{MODEL}"}
            for number in range(MANY)
        ],
    }
    (FOLDER / "profiles").mkdir(parents=True, exist_ok=True)
    write_yaml(INVENTORY, content)
    for count in (1, SERVERS_EACH, MANY):
        write_yaml(FOLDER / "profiles" / f"{count}-servers.yml", profile(count))
    hosts = content["all"]["children"]["forky"]["hosts"]
    return sorted(hosts, key=lambda name: int(name.rpartition("-")[2]))


def model_folders() -> Path:
    """The folder that nodes mount as /models: few/ has real models, many/ as many as a large registry."""
    folder = CACHE / "fleet-models"
    if not (folder / "many" / f"small-{MANY_MODELS - 1:04}-F16.gguf").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "few").mkdir(parents=True)
        (folder / "many").mkdir()
        for path in MODELS.glob("*.gguf"):
            shutil.copy(path, folder / "few")
        sample = small_model(folder / "sample.bin").read_bytes()
        for number in range(MANY_MODELS):
            (folder / "many" / f"small-{number:04}-F16.gguf").write_bytes(sample)
    return folder


def site(hosts: list[str], servers: int, *arguments: str) -> Run:
    limit = ("--limit", ",".join(hosts))
    return playbook("playbooks/site.yml", INVENTORY, *limit, "-e", f"profile={servers}-servers", *arguments)


def teardown(hosts: list[str]) -> None:
    playbook("playbooks/teardown.yml", INVENTORY, "--limit", ",".join(hosts))


def loop(host: str, *arguments: str) -> Run:
    return playbook("tests/bench/loop.yml", INVENTORY, "--limit", host, *arguments)


# --- one node --------------------------------------------------------------------------------------------------------


def one_node(first: str, second: str, rounds: int = 3) -> list[Row]:
    """20 servers on the first node with both roles; one server of ours on the second."""
    runs: dict[str, list[Run]] = {"first": [], "loop first": [], "ours": [], "loop": [], "alone": []}

    def timed(name: str, run: Run) -> float:
        runs[name].append(run)
        return run.seconds

    # The first runs of each side start on a node without servers.
    def first_ours() -> float:
        took = timed("first", site([first], MANY))
        teardown([first])
        return took

    def first_loop() -> float:
        took = timed("loop first", loop(first))
        loop(first, "-e", "loop_role_state=absent")
        return took

    say(f"{MANY} servers on one node: first runs")
    alternate(2, ours=first_ours, loop=first_loop)
    site([first], MANY)
    loop(first)
    site([second], 1)
    say("unchanged runs")
    alternate(
        rounds,
        ours=lambda: timed("ours", unchanged(site([first], MANY))),
        loop=lambda: timed("loop", unchanged(loop(first))),
        alone=lambda: timed("alone", unchanged(site([second], 1))),
    )
    teardown([first, second])
    loop(first, "-e", "loop_role_state=absent")
    firsts = f"ours {all_of(runs['first'])}; loop role {all_of(runs['loop first'])}; {profiled(runs['first'][-1])}"
    both = f"ours {all_of(runs['ours'])}; loop role {all_of(runs['loop'])}; {profiled(runs['ours'][-1])}"
    first_run, loop_first, ours, looped, alone = (seconds(got) for got in runs.values())
    return [
        faster(PART, f"first run, {MANY} servers on a host", first_run, loop_first, "loop role", 8, note=firsts),
        faster(PART, f"nothing to change, {MANY} servers", ours, looped, "loop role", 10, note=both),
        within(PART, "the same against one server", ours, alone, "1 server", 1.2, note=f"one {all_of(runs['alone'])}"),
    ]


# --- many nodes ------------------------------------------------------------------------------------------------------


def machine_busy() -> tuple[float, float]:
    """Seconds that this machine's processors were busy, and their sum with the idle seconds."""
    with open("/proc/stat", encoding="ascii") as stream:
        ticks = [int(value) for value in stream.readline().split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / hertz, sum(ticks) / hertz


def bound_by(hosts: list[str], servers: int) -> tuple[Run, str]:
    """A run, and its bottleneck: how busy the processors were, and the controller's share."""
    busy, there = machine_busy()
    run = site(hosts, servers)
    busy, there = machine_busy()[0] - busy, machine_busy()[1] - there
    share = run.processor / there
    text = f"processors {busy / there:.0%} busy, {share:.0%} with the controller and its ssh, the rest with the nodes"
    return run, f"{text}: {'the processors bound it' if busy / there > 0.8 else 'most of the time is waiting'}"


def many_nodes(hosts: list[str], rounds: int = 2) -> list[Row]:
    rows: list[Row] = []
    alone: dict[str, float] = {}
    for count in [count for count in HOSTS if count <= len(hosts)]:
        chosen = hosts[:count]
        say(f"{count} hosts with {SERVERS_EACH} servers each")
        # All other figures are divided by that of one host, so it is measured more than once.
        firsts = []
        for _ in range(rounds if count == 1 else 1):
            teardown(chosen)
            firsts.append(bound_by(chosen, SERVERS_EACH))
        runs = [bound_by(chosen, SERVERS_EACH) for _ in range(rounds)]
        for run, _ in runs:
            unchanged(run)
        unchanged_runs = [run for run, _ in runs]
        calls = unchanged_runs[-1].module_calls // count
        floors = [floor(calls, INVENTORY, "--limit", ",".join(chosen)) for _ in range(rounds)]
        what = f"nothing to change, {count} hosts, above Ansible itself"
        rows.append(above_floor(PART, what, unchanged_runs, floors, 1.3 if count == 10 else None))
        teardown(chosen)
        for kind, measured in (("first run", firsts), ("nothing to change", runs)):
            took, note = median(run.seconds for run, _ in measured), measured[-1][1]
            what = f"{kind}, {count} hosts, {took / count:.2f} s a host"
            if count == 1:
                alone[kind] = took
                rows.append(figure(PART, what, took, "s", note=note))
            else:
                rows.append(within(PART, what, took, alone[kind], "1 host", 3 if count == 10 else None, note=note))
    return rows


# --- memory and network traffic -------------------------------------------------------------------------------------


class Memory(threading.Thread):
    """Peak memory of all descendants of this process together, shared pages counted once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.3):
            self.peak = max(self.peak, sum(proportional(pid) for pid in descendants(os.getpid())))


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from descendants(child)


def proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def container(host: str) -> str:
    """The name of a node's container, which is unique on the machine."""
    hosts = yaml.safe_load(INVENTORY.read_text())["all"]["children"]["forky"]["hosts"]
    return str(hosts[host]["nodes_container"])


def transferred(host: str) -> int:
    """Bytes in and out of a node's network card. All of them are between the controller and the node."""
    command = ["podman", "exec", container(host), "sh", "-c", "cat /sys/class/net/eth0/statistics/[rt]x_bytes"]
    return sum(
        int(value) for value in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )


def registry_size(host: str) -> int:
    command = ["podman", "exec", container(host), "stat", "-c", "%s", "/var/lib/magi-llama/registry.json"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def weight(hosts: list[str]) -> list[Row]:
    """Controller memory and bytes per host, in runs that change nothing, with few and with many models.

    The goals limit what many models add: no more than the size of the registry, which each host has.
    """
    rows: list[Row] = []
    before: dict[str, float] = {}
    for name, arguments in (
        ("3 models", ()),
        (f"{MANY_MODELS:,} models", ("-e", '{"registry_scan_paths": ["/models"]}')),
    ):
        say(f"{name} on {len(hosts)} hosts")
        site(hosts, SERVERS_EACH, *arguments)
        memory, sent = Memory(), {host: transferred(host) for host in hosts}
        memory.start()
        run = unchanged(site(hosts, SERVERS_EACH, *arguments))
        memory.over.set()
        memory.join()
        each = [transferred(host) - sent[host] for host in hosts]
        values = {
            "bytes transferred per host": (median(each) / 1000, "kB"),
            "controller's memory": (memory.peak / 1e6, "MB"),
        }
        for what, (value, unit) in values.items():
            text = f"{what}, {len(hosts)} hosts, {name}"
            note = (
                f"{run.seconds:.1f} s; {spread(each)} bytes"
                if unit == "kB"
                else f"largest process {run.peak_bytes / 1e6:.0f} MB"
            )
            if what in before:
                rows.append(within(PART, text, value, before[what], "3 models", unit=unit, note=note))
                size = registry_size(hosts[0]) * (1e-3 if unit == "kB" else 1e-6 * len(hosts))
                whose = "a registry" if unit == "kB" else f"{len(hosts)} registries"
                grown = max(value - before[what], 0.0)
                rows.append(within(PART, f"{what}: what {name} add", grown, size, whose, 1, unit=unit))
            else:
                before[what] = value
                rows.append(figure(PART, text, value, unit, note=note))
    return rows


def measure() -> list[Row]:
    need_binaries()
    try:
        nodes("image")
    except BenchError as error:
        return [skipped(PART, "over SSH", str(error))]
    began = time.monotonic()
    rows: list[Row] = []
    with bed(max(HOSTS), model_folders()) as hosts:
        say(f"nodes are running after {time.monotonic() - began:.0f} s")
        rows += one_node(hosts[0], hosts[1])
        rows += many_nodes(hosts)
        rows += weight(hosts[:10])
    return rows
