# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model to eight hosts over shaped links: against one transfer, against a star, and after a host was killed.

Each host is the process that distribute.yml starts, in a network namespace of its own.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import Pieces, compute_pieces
from ansible_collections.magi.llama.plugins.module_utils._distribution.worker import FOLDER
from bench.measure import CACHE, ROOT, BenchError, Row, controller_environment, figure, say, skipped, within
from support import netns

PART = "distribute"
HOSTS, MBIT, SIZE_BYTES = 8, 200, 100_000_000
NAME = "model-Q4_K_M.gguf"
LIMIT_SECONDS = 180


def measure() -> list[Row]:
    reason = netns.missing()
    if reason:
        return [skipped(PART, f"{HOSTS} hosts", reason)]
    folder = CACHE / PART
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    original = folder / "original.gguf"
    with original.open("wb") as stream:
        for seed in range(SIZE_BYTES // 1_000_000):
            stream.write(random.Random(seed).randbytes(1_000_000))
    pieces = compute_pieces(str(original))
    try:
        with netns.hosts(HOSTS + 1, MBIT) as names:
            fleet = Fleet(folder, original, pieces, names)
            one = fleet.run(1)
            say(f"one host: {one.seconds:.1f} s")
            swarm = fleet.run(HOSTS)
            say(f"{HOSTS} hosts: {swarm.seconds:.1f} s, the source sent {swarm.sent / SIZE_BYTES:.2f} times the file")
            star = fleet.run(HOSTS, star=True)
            say(f"star: {star.seconds:.1f} s")
            killed = fleet.run(HOSTS, kill=True)
            say(f"one killed: {killed.seconds:.1f} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    what = f"{SIZE_BYTES // 1_000_000} MB to {HOSTS} hosts, links of {MBIT} Mbit/s"
    return [
        within(PART, what, swarm.seconds, one.seconds, "one host", 2.5, note=f"a star takes {star.seconds:.1f} s"),
        figure(PART, "bytes that the source sends", swarm.sent / SIZE_BYTES, "files", 1.3),
        within(PART, "one host killed at half and started again", killed.seconds, one.seconds, "one host"),
        figure(PART, "of the killed host's file kept", killed.resumed / SIZE_BYTES, "files"),
    ]


class Result:
    """Seconds until every host had the file, bytes that the source sent, and bytes that the killed host had kept."""

    def __init__(self, seconds: float, sent: int, resumed: int) -> None:
        self.seconds, self.sent, self.resumed = seconds, sent, resumed


class Fleet:
    """The source, which is the first namespace, and the hosts in the others."""

    def __init__(self, folder: Path, original: Path, pieces: Pieces, namespaces: Sequence[str]) -> None:
        self._folder, self._original, self._pieces, self._namespaces = folder, original, pieces, namespaces

    def run(self, count: int, *, star: bool = False, kill: bool = False) -> Result:
        """Copy the file to the first count hosts. In a star each gets it from the source alone."""
        names = [f"host{number}" for number in range(count + 1)]
        for name in names:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / name).mkdir()
        # A link would do, but for its permissions.
        shutil.copyfile(self._original, self._folder / names[0] / NAME)
        processes = [self._start(number, names, star) for number in range(count + 1)]
        began = time.monotonic()
        try:
            if kill:
                self._wait(lambda: self._status(names[1]).get("have", 0) >= SIZE_BYTES // 2, processes)
                processes[1].kill()
                processes[1].wait()
                (self._folder / names[1] / FOLDER / "status.json").unlink()
                processes[1] = self._start(1, names, star)
            self._wait(lambda: all(self._status(name).get("complete") for name in names[1:]), processes)
            seconds = time.monotonic() - began
            sent, resumed = self._status(names[0])["sent"], self._status(names[1])["resumed"]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        self._compare(names[1:])
        return Result(seconds, sent, resumed)

    def _compare(self, names: Sequence[str]) -> None:
        content = self._original.read_bytes()
        wrong = [name for name in names if (self._folder / name / NAME).read_bytes() != content]
        if wrong:
            raise BenchError(f"{', '.join(wrong)}: the file is not the one of the source.")

    def _start(self, number: int, names: Sequence[str], star: bool) -> subprocess.Popen[str]:
        job = json.dumps(self._job(number, names, star))
        command = netns.inside(self._namespaces[number], sys.executable, str(ROOT / "tests/support/piece_host.py"))
        with (self._folder / names[number] / "log").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=log, env=controller_environment(), text=True, cwd=ROOT
            )
        assert process.stdin
        process.stdin.write(job)
        process.stdin.close()
        return process

    def _job(self, number: int, names: Sequence[str], star: bool) -> dict[str, Any]:
        me, source = names[number], names[0]
        gets = [me] if star else list(names[1:])
        others = [source] if star and number else list(names)
        return {
            "run": "bench",
            "token": "bench",
            "me": me,
            "folder": str(self._folder / me),
            "files": [
                {
                    "name": NAME,
                    "pieces": self._pieces.as_dict(),
                    "role": "get" if number else "give",
                    "hosts": gets,
                    "mirror": "",
                    # As from the controller, whose checksums are trusted.
                    "sha256": "",
                }
            ],
            "peers": [
                {"name": name, "host": netns.address(names.index(name)), "seeds": [0] if name == source else []}
                for name in others
                if name != me
            ],
            "addresses": [netns.address(number)],
            "ports": [8190, 8199],
        }

    def _status(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder / name / FOLDER / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        if found.get("error"):
            raise BenchError(f"{name}: {found['error']}")
        return found

    def _wait(self, is_done: Any, processes: Sequence[subprocess.Popen[str]]) -> None:
        until = time.monotonic() + LIMIT_SECONDS
        while not is_done():
            ended = [number for number, process in enumerate(processes) if process.poll() is not None]
            if ended or time.monotonic() > until:
                raise BenchError(f"The run does not end; processes that have ended: {ended}. Logs: {self._folder}.")
            time.sleep(0.05)
