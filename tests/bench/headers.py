# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading one header, scanning a cold folder, and the registry of thousands of unchanged models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._models.gguf import read_header
from bench.measure import (
    CACHE,
    FIRST_PORT,
    ROOT,
    BenchError,
    Row,
    Run,
    alternate,
    ansible,
    controller_environment,
    faster,
    figure,
    say,
    skipped,
    spread,
    unchanged,
    within,
)
from bench.runs import MODEL, MODELS, Ours, need_binaries, removed_afterwards
from support.gguf_files import small_model, write_vocabulary_heavy

PART = "headers"
# Further readers by registry, each with the folder that shows that it is installed, and the measured version.
PYPI = {"gguf-parser": "gguf_parser", "gguf-inspect==0.1.0": "gguf_inspect"}
NPM = {"@huggingface/gguf": "@huggingface/gguf", "hyllama@0.2.2": "hyllama"}
MODULE = "ansible_collections.magi.llama.plugins.modules.gguf_registry"
MEGABYTE = 1_000_000
COLD_FILES = 200


def output_of(*argv: str | Path, stdin: str | None = None, **environment: str) -> Any:
    done = subprocess.run(
        [str(part) for part in argv],
        input=stdin,
        env=controller_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"`{' '.join(map(str, argv))}` exited with code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


# --- one header ------------------------------------------------------------------------------------------------------


def install(folder: Path, proof: str, *command: str | Path) -> str | None:
    """Install a peer in its own folder, once. Returns the reason if it cannot be installed."""
    if (folder / proof).exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    if not shutil.which(command[0]):
        return f"{Path(command[0]).name} is missing"
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"`{Path(command[0]).name} install` failed: {done.stderr.strip().splitlines()[-1:]}"
    return None


def readers(path: Path) -> tuple[dict[str, Callable[[], dict[str, float]]], list[Row]]:
    """The readers that are available on this machine, each as a call that reads once in a new process; and rows for the
    missing ones."""
    python, node = CACHE / "python", CACHE / "node"
    found: dict[str, Callable[[], dict[str, float]]] = {}
    missing = []
    for name in ("ours", "gguf"):
        found[name] = partial(output_of, sys.executable, "-m", "bench.one_reader", name, path)
    uv = ROOT / ".cache" / "uv" / "bin" / "uv"
    into = ("pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", python)
    search = f"{ROOT / 'tests'}:{ROOT / 'collections'}:{python}"
    for wanted, module in PYPI.items():
        name = wanted.partition("==")[0]
        why = install(python, module, uv, *into, wanted)
        if why is None:
            command = (sys.executable, "-m", "bench.one_reader", name, path)
            found[name] = partial(output_of, *command, PYTHONPATH=search)
        else:
            missing.append(skipped(PART, f"{name} (PyPI)", why))
    quiet = ("--no-audit", "--no-fund", "--silent", "--prefix", node)
    for wanted, name in NPM.items():
        why = "node is missing" if not shutil.which("node") else None
        why = why or install(node, f"node_modules/{name}", "npm", "install", *quiet, wanted)
        if why is None:
            found[name] = partial(output_of, "node", Path(__file__).with_name("one_reader.mjs"), node, name, path)
        else:
            missing.append(skipped(PART, f"{name} (npm)", why))
    return found, missing


def one_header(path: Path, rounds: int = 5) -> list[Row]:
    found, rows = readers(path)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in found}

    def once(name: str) -> float:
        results[name].append(found[name]())
        return results[name][-1]["seconds"]

    slow = found.keys() & {"gguf"}
    for names, repeats in ((found.keys() - slow, rounds), (slow, 2)):
        # Ours runs again next to the slow reader, so that both see the same load.
        alternate(repeats, **{name: (lambda name=name: once(name)) for name in sorted({"ours", *names})})
    seconds = {name: median(result["seconds"] for result in got) for name, got in results.items()}
    peaks = {name: max(result["peak_bytes"] for result in got) / MEGABYTE for name, got in results.items()}
    ours, size = seconds["ours"], read_header(str(path)).data_offset / MEGABYTE
    note = "; ".join(f"{name}: {spread(result['seconds'] for result in got)}" for name, got in results.items())
    rows += [
        figure(PART, f"header of {size:.1f} MB (128k tokens, 280k merges)", ours, "s", 0.1, note),
        faster(PART, "the same against the gguf package", ours, seconds["gguf"], "gguf", 150),
    ]
    others = [name for name in seconds if name not in ("ours", "gguf")]
    for name in sorted(others, key=seconds.__getitem__):
        fastest = 1 if name == min(others, key=seconds.__getitem__) else None
        rows.append(faster(PART, f"the same against {name}", ours, seconds[name], name, fastest))
    rows += [
        figure(PART, "peak memory of its process", peaks["ours"], "MB", 32),
        *(faster(PART, "the same", peaks["ours"], peaks[name], name, unit="MB") for name in peaks if name != "ours"),
        figure(PART, "read calls per megabyte", results["ours"][0]["reads"] / size, "", 1),
    ]
    return rows


# --- a cold folder ---------------------------------------------------------------------------------------------------


def forget(files: list[Path]) -> None:
    """Drop the files from the page cache; pages that are not yet on the disk stay."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cold_folder(sample: Path, rounds: int = 3) -> list[Row]:
    what = f"scan of {COLD_FILES} such files, cold cache"
    needed = COLD_FILES * sample.stat().st_size
    if shutil.disk_usage(CACHE).free < 2 * needed:
        return [skipped(PART, what, f"it takes {needed >> 20} MiB of disk")]
    folder = CACHE / "cold"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        say(f"copying {COLD_FILES} files")
        files = [folder / f"vocabulary-{number:03}-F16.gguf" for number in range(COLD_FILES)]
        for file in files:
            shutil.copyfile(sample, file)
        scans: list[dict[str, float]] = []

        def cat() -> float:
            forget(files)
            return timed("cat", *files)  # each file is all header except 4 KiB of weights

        def scan() -> float:
            forget(files)
            scans.append(output_of(sys.executable, "-m", "bench.one_reader", "scan", folder))
            return scans[-1]["seconds"]

        seconds = alternate(rounds, cat=cat, scan=scan)
    finally:
        shutil.rmtree(folder)
    cores = len(os.sched_getaffinity(0))
    cat_seconds, scan_seconds = median(seconds["cat"]), median(seconds["scan"])
    allowed = cat_seconds + 0.1 * COLD_FILES / cores
    busy = median(result["processor"] / result["seconds"] for result in scans)
    fetched = min(result["fetched"] for result in scans) / needed
    reads = max(result["file_reads"] for result in scans)
    note = f"cat {spread(seconds['cat'])}; scan {spread(seconds['scan'])}; {fetched:.0%} came from the disk"
    return [
        within(PART, what, scan_seconds, allowed, f"cat + 0.1 s a file on {cores} cores", 2, note=note),
        within(PART, "the same against cat alone", scan_seconds, cat_seconds, "cat"),
        within(PART, "cores available against cores kept busy", cores, busy, "busy", 1.25, unit=""),
        figure(PART, "read calls per megabyte of that scan", reads / (needed / MEGABYTE), "", 1),
    ]


def timed(*argv: str | Path) -> float:

    began = time.monotonic()
    subprocess.run([str(part) for part in argv], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


# --- thousands of unchanged models -----------------------------------------------------------------------------------


class Collection:
    """A folder of many small models with its registry and inventory."""

    def __init__(self, count: int, port: int) -> None:
        self.count = count
        self.folder = CACHE / f"models-{count}"
        self.models = self.folder / "models"
        self.registry = self.folder / "registry.json"
        self.host = Ours(1, self.folder, port=port, models=self.models, registry=self.registry)
        self.remove()  # servers of an interrupted bench
        shutil.rmtree(self.models, ignore_errors=True)
        sample = small_model(self.folder / "sample.gguf").read_bytes()
        self.models.mkdir(parents=True)
        shutil.copy(MODELS / MODEL, self.models)
        for number in range(1, count):
            path = self.models / f"family-{number // 100:02}" / f"Small-Model-{number:04}-7B-Instruct-F16.gguf"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample)

    def site(self, *arguments: str) -> Run:
        return self.host.run(*arguments)

    def remove(self) -> None:
        self.host.remove()

    def arguments(self, **more: Any) -> dict[str, Any]:
        return {"scan_paths": [str(self.models)], "registry_path": str(self.registry), **more}

    def module(self, **more: Any) -> tuple[float, dict[str, Any]]:
        """Run the module as a process, without Ansible's overhead."""

        given = json.dumps({"ANSIBLE_MODULE_ARGS": self.arguments(**more)})
        began = time.monotonic()
        result = output_of(sys.executable, "-m", MODULE, stdin=given)
        return time.monotonic() - began, result

    def module_unchanged(self) -> float:
        seconds, result = self.module()
        if result["changed"] or result["progress"]["read"]:
            raise BenchError(f"A second scan of {self.models} read {result['progress']['read']} files again.")
        return seconds

    def ad_hoc(self) -> float:
        arguments = json.dumps(self.arguments())
        return ansible(
            "ansible", "-i", str(self.host.inventory), "localhost", "-m", "magi.llama.gguf_registry", "-a", arguments
        ).seconds

    def ping(self) -> float:
        return ansible("ansible", "-i", str(self.host.inventory), "localhost", "-m", "ansible.builtin.ping").seconds


def unchanged_models(rounds: int = 5) -> list[Row]:
    thousand, five = Collection(1000, FIRST_PORT + 50), Collection(5000, FIRST_PORT + 51)
    first = {collection.count: collection.module()[0] for collection in (thousand, five)}
    alone = alternate(rounds, thousand=thousand.module_unchanged, five_thousand=five.module_unchanged)
    ad_hoc = alternate(3, ping=thousand.ping, thousand=thousand.ad_hoc, five_thousand=five.ad_hoc)
    one, more = median(alone["thousand"]), median(alone["five_thousand"])
    ping = median(ad_hoc["ping"])
    facts = {kind: fact_size(five, kind) for kind in ("full", "short")}
    cold = f"first scan of 1,000: {first[1000]:.2f} s, of 5,000: {first[5000]:.2f} s"
    hand = "Ansible's own overhead; the rest is the module and its result"
    return [
        figure(PART, "module alone, 1,000 unchanged files", one, "s", 1, cold),
        within(PART, "module alone, 5,000 unchanged files", more, one, "1,000 files", 5),
        within(PART, "`ansible -m`, 1,000 unchanged files", median(ad_hoc["thousand"]), ping, "ping", note=hand),
        within(PART, "`ansible -m`, 5,000 unchanged files", median(ad_hoc["five_thousand"]), ping, "ping"),
        figure(PART, "fact per model, full", facts["full"], "B"),
        figure(PART, "fact per model, short (over 500 models)", facts["short"], "B"),
        figure(PART, "registry file per model", five.registry.stat().st_size / five.count, "B"),
        *site_without_scan(five),
    ]


def fact_size(collection: Collection, kind: str) -> float:
    _, result = collection.module(fact=kind)
    return len(json.dumps(result["ansible_facts"])) / collection.count


def site_without_scan(many: Collection, rounds: int = 3) -> list[Row]:
    """site.yml with 5,000 models against 5. Both plan and run the same server and change nothing."""
    few = Collection(5, FIRST_PORT + 52)
    runs: dict[str, list[Run]] = {"few": [], "many": [], "few check": [], "many check": []}

    def site(name: str, collection: Collection, *arguments: str) -> float:
        runs[name].append(unchanged(collection.site(*arguments)))
        return runs[name][-1].seconds

    with removed_afterwards(few, many):
        few.site()
        many.site()
        alternate(
            rounds,
            few=lambda: site("few", few),
            many=lambda: site("many", many),
            few_check=lambda: site("few check", few, "--check"),
            many_check=lambda: site("many check", many, "--check"),
        )
    scan = "Scan the model folders"
    whole = {name: median(run.seconds for run in got) for name, got in runs.items()}
    rest = {name: median(run.seconds - run.seconds_of(scan) for run in got) for name, got in runs.items()}
    rows = []
    for kind, name in (("", "site.yml"), (" check", "site.yml --check")):
        where = slowest_tasks(runs["few" + kind][-1], runs["many" + kind][-1])
        note = f"with the scan {whole['many' + kind] - whole['few' + kind]:.2f} s; {where}"
        added = rest["many" + kind] - rest["few" + kind]
        rows.append(figure(PART, f"5,000 models add to the rest of {name}", added, "s", 2, note))
    return rows


def slowest_tasks(few: Run, many: Run) -> str:
    """The tasks that many models made slower."""
    before = {name: end - begin for name, begin, end in few.tasks}
    added = {name: end - begin - before.get(name, 0.0) for name, begin, end in many.tasks}
    worst = sorted(added, key=added.__getitem__, reverse=True)[:4]
    return "most of it in " + ", ".join(f"{name.rpartition(' : ')[2]} {added[name]:+.2f} s" for name in worst)


def measure() -> list[Row]:
    need_binaries()
    CACHE.mkdir(parents=True, exist_ok=True)
    sample = CACHE / "vocabulary.gguf"
    if not sample.exists():
        write_vocabulary_heavy(sample)
    rows: list[Row] = []
    parts: tuple[tuple[str, Callable[[], list[Row]]], ...] = (
        ("one header with a large vocabulary", lambda: one_header(sample)),
        (f"{COLD_FILES} files in a cold cache", lambda: cold_folder(sample)),
        ("thousands of unchanged models", unchanged_models),
    )
    for title, part in parts:
        say(title)
        rows += part()
    return rows
