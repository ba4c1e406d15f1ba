# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway adds to a request, against LiteLLM's proxy; its memory; and what 2,000 servers cost it."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import AdminSocket
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, Server
from bench.gateway_processes import (
    DIRECT,
    FOLDER,
    HAPROXY,
    MODEL_ID,
    OURS,
    PEER,
    PEER_NAME,
    answers,
    body_of,
    fake_server,
    gateway,
    gateway_environment,
    one_backend,
    peer,
    peer_program,
    quick_server,
    wait_for,
    write_gateway,
)
from bench.measure import (
    BenchError,
    Row,
    alternate,
    figure,
    say,
    skipped,
    spread,
    within,
)
from bench.open_loop import Sample, hold, release, segment
from bench.runs import need_binaries

PART = "gateway"
# At more the peer's requests queue on two cores, and the figure would be that of its queue.
RATE, PEER_RATE = 200, 20
# Short rounds: a burst of other load on the machine is in few of them.
SECONDS, ROUNDS, PEER_ROUNDS = 1.5, 16, 6
SIZES = {"1 kB": 1000, "100 kB": 100_000}
GOALS_MS = {"1 kB": 1.0, "100 kB": 2.0}
HELD, HELD_BYTES = 100, 900_000
SERVERS, MODELS_OF_MANY = 2000, 40
CHECK_SECONDS = 20.0


def latencies(ports: dict[str, int], size: int, rate: float, rounds: int) -> dict[str, list[Sample]]:
    """Samples of each in turn, so that other load on the machine affects all."""
    body = body_of(size)
    found: dict[str, list[Sample]] = {name: [] for name in ports}

    def once(name: str) -> float:
        found[name].append(segment(ports[name], body, rate, SECONDS))
        return found[name][-1].percentile(95)

    for port in ports.values():
        segment(port, body, rate, 0.5)
    alternate(rounds, **{name: (lambda name=name: once(name)) for name in ports})
    return found


def added(found: dict[str, list[Sample]], name: str, percent: float) -> float:
    """Milliseconds more than asking the server: the median over the rounds."""
    return median(differences(found, name, percent))


def differences(found: dict[str, list[Sample]], name: str, percent: float) -> list[float]:
    pairs = zip(found[name], found["direct"], strict=True)
    return [one.percentile(percent) - direct.percentile(percent) for one, direct in pairs]


def latency_rows(what: str, found: dict[str, list[Sample]], limit: float | None, behind: str) -> list[Row]:
    rows = []
    for percent in (50, 95):
        ours = added(found, "ours", percent)
        other = added(found, "litellm", percent) if "litellm" in found else None
        goal = limit if percent == 95 else None
        direct = median(sample.percentile(percent) for sample in found["direct"])
        failed = ", ".join(f"{name} {sum(one.failed for one in got)}" for name, got in found.items())
        rows.append(
            Row(
                PART,
                f"added at {what}, p{percent}",
                ours,
                "ms",
                PEER_NAME if other is not None else "",
                other,
                ours / other if other else None,
                f"≤ {goal:g} ms" if goal else "",
                ours <= goal if goal else None,
                f"{spread(differences(found, 'ours', percent))}; direct {direct:.2f} ms; failed: {failed}; {behind}",
            )
        )
    return rows


def added_latency() -> list[Row]:
    rows: list[Row] = []
    with ExitStack() as stack:
        behind = stack.enter_context(quick_server(RATE))
        stack.enter_context(gateway(one_backend()))
        wait_for("The gateway's server", FOLDER / "gateway.log", lambda: answers(OURS))
        ports = {"direct": DIRECT, "ours": OURS}
        program = peer_program()
        if program is not None:
            stack.enter_context(peer(program))
            ports["litellm"] = PEER
        else:
            rows.append(skipped(PART, PEER_NAME, "it cannot be installed"))
        for name, size in SIZES.items():
            say(f"{RATE} requests a second of {name}")
            # The peer's own load must not slow ours: it has its rounds in the same run, at what it can answer.
            found = latencies({key: port for key, port in ports.items() if key != "litellm"}, size, RATE, ROUNDS)
            rows += latency_rows(f"{RATE}/s, {name}", found, GOALS_MS[name], behind)
            if program is not None:
                say(f"{PEER_RATE} requests a second of {name}, with {PEER_NAME}")
                found = latencies(ports, size, PEER_RATE, PEER_ROUNDS)
                rows += latency_rows(f"{PEER_RATE}/s, {name}", found, None, behind)
    return rows


def memory() -> list[Row]:
    with fake_server([MODEL_ID]), gateway(one_backend()) as process:
        wait_for("The gateway's server", FOLDER / "gateway.log", lambda: answers(OURS))
        rest = process.resident_bytes()

        async def measured() -> tuple[int, int]:
            connections, last = await hold(OURS, body_of(HELD_BYTES), HELD, 3.0)
            held = process.resident_bytes()
            return held, await release(connections, last)

        held, answered = asyncio.run(measured())
        time.sleep(2)
        after = process.resident_bytes()
    note = f"{held / 1e6:.0f} MB in all, {after / 1e6:.0f} MB afterwards; {answered} of {HELD} answered"
    what = f"memory that {HELD} requests of 900 kB add"
    return [
        figure(PART, "memory at rest", rest / 1e6, "MB"),
        within(PART, what, (held - rest) / 1e6, HELD * HELD_BYTES / 1e6, "their bytes", 1.5, unit="MB", note=note),
    ]


def many_servers() -> list[Row]:
    models = [f"model-{number}" for number in range(MODELS_OF_MANY)]
    each = SERVERS // MODELS_OF_MANY
    backends = [
        Backend(
            *(model, model, None, "model"),
            tuple(Server(f"h{number}_{model}", "127.0.0.1", DIRECT, 4) for number in range(each)),
        )
        for model in models
    ]
    folder = write_gateway(backends, OURS)
    command = [HAPROXY, "-c", "-f", str(folder / "haproxy.cfg")]
    environment = {**os.environ, **gateway_environment(folder)}

    def check() -> float:
        began = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"HAProxy refuses the configuration: {done.stderr[-1000:]}")
        return time.monotonic() - began

    seconds = alternate(3, check=check)["check"]
    with fake_server(models), gateway(backends) as process:
        time.sleep(5)
        up = list(AdminSocket(str(FOLDER / "run" / "admin.sock")).checks().values()).count("L7OK")
        if up != SERVERS:
            raise BenchError(f"{up} of {SERVERS} servers are up: see {FOLDER / 'gateway.log'}.")
        began, used = time.monotonic(), process.processor_seconds()
        time.sleep(CHECK_SECONDS)
        share = 100 * (process.processor_seconds() - used) / (time.monotonic() - began)
        resident = process.resident_bytes()
    note = f"{SERVERS} servers of {MODELS_OF_MANY} models; {resident / 1e6:.0f} MB"
    return [
        figure(PART, f"checks of {SERVERS} servers, of one core", share, "%", 25, note),
        figure(PART, f"haproxy -c with {SERVERS} servers", median(seconds), "s", 1),
    ]


def measure() -> list[Row]:
    need_binaries()
    if not Path(HAPROXY).exists():
        raise BenchError(f"{HAPROXY} is missing: apt-get install haproxy")
    FOLDER.mkdir(parents=True, exist_ok=True)
    # As its unit allows: a check is a connection.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    rows: list[Row] = []
    for title, part in (("latency", added_latency), ("memory", memory), (f"{SERVERS} servers", many_servers)):
        say(title)
        rows += part()
    return rows
