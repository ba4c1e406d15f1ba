# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients see of changes: requests at a steady rate while profiles, settings and llama-server change."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import BenchError, Row, figure, say
from bench.runs import need_binaries
from support import reaper
from support.bed import BINARIES
from support.gateway import KEY, PROFILES, Q2, Q3, Q4, Gateway, deployed_gateway
from support.load import Answers, under_load

PART = "changes"
RATE = 50
REQUESTS = int(os.environ.get("CHANGES_REQUESTS", "10000"))
MODELS = (Q2, Q3, Q4)
# The other profile has all models, since all are asked for: each server changes, and one instance leaves.
NIGHT = {**PROFILES["three"], "parameters": {**PROFILES["three"]["parameters"], "ctx_size": 4096}}
CUT = ("cut", "RemoteProtocolError", "ReadError")
WRONG = "another model"
# A line of a plan: how a server is changed, and its name.
WAY = re.compile(r"^ +(surge|swap|away) +(tiny\S+)", re.MULTILINE)


def other_binary(folder: Path) -> Path:
    """Another llama-server of the same build: a server that is restarted for it is one that is upgraded."""
    path = folder / "llama-server"
    path.write_bytes((BINARIES / "llama-server").read_bytes() + b"\n# upgraded\n")
    path.chmod(0o755)
    return path


class Changes:
    """One change after another, each to its end, and what the plans say of how they are done."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self._gateway = gateway
        self._binaries = [str(other_binary(folder)), str(BINARIES / "llama-server")]
        self.ways: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("profile switch", lambda: self._site(profile="night")),
            ("way back", lambda: self._site(profile="four")),
            ("reload", self._reload),
            ("binary upgrade", lambda: self._site(runtime_binary_path=self._next_binary())),
            ("restart of instances", self._restart),
        ]

    def cycle(self, answers: Answers, is_over: Callable[[], bool]) -> None:
        for name, change in self.steps():
            if is_over():
                return
            began, before = time.monotonic(), Counter(answers.outcomes)
            change()
            self.done[name] += 1
            # An answer that is on the way counts for the next change.
            say(f"{name}: {time.monotonic() - began:.1f} s, {dict(answers.outcomes - before)}")

    def _next_binary(self) -> str:
        return self._binaries[self.done["binary upgrade"] % 2]

    def _site(self, **variables: Any) -> None:
        self._gateway.set(**variables)
        before = self._gateway.bed.pids()
        output = self._gateway.bed.run("site").output
        ways = {name: way for way, name in WAY.findall(output)}
        self._count(ways, before)

    def _restart(self) -> None:
        before = self._gateway.bed.pids()
        instances = (Q4, f"{Q4}-2")
        self._gateway.bed.run("restart", "-e", f"servers={','.join(instances)}")
        self._count(dict.fromkeys(instances, "swap"), before)

    def _count(self, ways: dict[str, str], before: dict[str, int]) -> None:
        """Count the changed servers by the way that the plan says, and check that each has another process."""
        after = self._gateway.bed.pids()
        left = [name for name in ways if after.get(name) in (None, before.get(name))]
        if left or not ways:
            raise BenchError(f"These servers were to be restarted and run as before: {', '.join(left) or 'all'}.")
        self.ways.update(ways.values())

    def _reload(self) -> None:
        self._gateway.set(gateway_max_queue=60 + self.done["reload"] % 2)
        self._gateway.bed.run("gateway").expect("reloaded")


def taken_out(gateway: Gateway) -> list[str]:
    """What the gateway's log says of servers that were taken out by their checks."""
    lines = (gateway.state / "log/gateway.log").read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith("[WARNING]") and " is DOWN, reason" in line]


def rows_of(answers: Answers, changes: Changes, seconds: float) -> list[Row]:
    total = answers.outcomes.total()
    cut = sum(answers.outcomes[name] for name in CUT)
    wrong = answers.outcomes[WRONG]
    failed = total - answers.outcomes["ok"] - cut - wrong
    done = ", ".join(f"{count} × {name}" for name, count in changes.done.items())
    return [
        figure(PART, "requests", total, "", note=f"{total / seconds:.1f}/s of {RATE}/s; {dict(answers.outcomes)}"),
        figure(PART, "failed", failed, "", 0),
        figure(PART, "cut", cut, "", 0),
        figure(PART, "answered by another model", wrong, "", 0),
        figure(PART, "latency, p50", answers.percentile(50), "ms"),
        figure(PART, "latency, p95", answers.percentile(95), "ms", note=f"slowest {answers.percentile(100):.0f} ms"),
        figure(PART, "surges", changes.ways["surge"], "", note=done),
        figure(PART, "swaps", changes.ways["swap"], "", note=f"models away: {changes.ways['away']}"),
    ]


def measure() -> list[Row]:
    need_binaries()
    with reaper.temporary_folder("magi-bench-") as folder, deployed_gateway(folder) as gateway:
        (gateway.bed.inventory / "profiles/night.yml").write_text(json.dumps(NIGHT))
        gateway.wait_up(4)
        # On a busy machine, that it takes long is for the table to say.
        gateway.bed.run_seconds = 900
        changes = Changes(gateway, folder)
        began = time.monotonic()
        with under_load(gateway.url, MODELS, KEY, folder / "stop", RATE) as answers:

            def is_over() -> bool:
                return len(answers.milliseconds) >= REQUESTS

            # Each kind at least once; where the requests are not enough for that there are more of them.
            changes.cycle(answers, lambda: False)
            while not is_over():
                changes.cycle(answers, is_over)
        for line in taken_out(gateway):
            say(line)
        return rows_of(answers, changes, time.monotonic() - began)
