# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens a second of several busy servers on this machine's cores: threads: auto against llama-server's default."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import CACHE, FIRST_PORT, ROOT, BenchError, Row, alternate, say, spread
from bench.runs import FLAGS, MODEL_ID, PARAMETERS, Ours, healthy, need_binaries, removed_afterwards
from support.gguf_files import write_tiny_llama

PART = "threads"
SERVERS = 4
OUR_PORT = FIRST_PORT + 44
DEFAULT_PORT = OUR_PORT + SERVERS
TOKENS = 120
ROUNDS = 3
SERVER = ROOT / ".cache" / "bin" / "llama-server"
# Of a size at which threads have something to compute: 85 million parameters, 56 MB.
SIZES: dict[str, int] = {"blocks": 12, "embedding": 768, "heads": 12, "heads_kv": 12, "feed_forward": 2048}
GOALS = {1: 0.6, 2: 10.0, 4: 10.0}


def made_model() -> Path:
    """A random model, quantized once, under the name of the model in the other benches."""
    target = CACHE / "threads" / "models" / "tiny-llama-Q4_K_M.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source = write_tiny_llama(CACHE / "threads" / "f16.gguf", **SIZES)
        partial = target.with_suffix(".partial")
        command = [str(ROOT / ".cache" / "bin" / "llama-quantize"), str(source), str(partial), "Q4_K_M", "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"llama-quantize failed: {done.stderr[-1000:]}")
        source.unlink()
        partial.rename(target)
    return target


@contextmanager
def by_hand(model: Path) -> Iterator[list[int]]:
    """The same servers as a user starts them, with llama-server's own number of threads."""
    ports = [DEFAULT_PORT + number for number in range(SERVERS)]
    base = [str(SERVER), "--model", str(model), "--host", "127.0.0.1", *FLAGS]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([*base, "--port", str(port)], **quiet) for port in ports]
    try:
        deadline = time.monotonic() + 120
        while not all(healthy(port) for port in ports):
            if time.monotonic() > deadline:
                raise BenchError(f"Servers started by hand are not healthy on the ports {ports}.")
            time.sleep(0.1)
        yield ports
    finally:
        for process in processes:
            process.kill()
            process.wait()


def generate(port: int) -> int:
    """Request a text and return how many tokens came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        body = {"prompt": "Hello", "n_predict": TOKENS, "ignore_eos": True, "cache_prompt": False}
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        return int(json.loads(connection.getresponse().read())["tokens_predicted"])
    finally:
        connection.close()


def rate(ports: Sequence[int]) -> float:
    """Tokens a second of all these servers together, with one request to each at once."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(ports)) as pool:
        tokens = sum(pool.map(generate, ports))
    return tokens / (time.monotonic() - began)


def measure() -> list[Row]:
    need_binaries()
    model = made_model()
    profile = {
        "description": "Servers that share the cores",
        "enabled_models": [{"model": MODEL_ID, "instances": SERVERS}],
        "parameters": {**PARAMETERS, "threads": "auto"},
    }
    ours = Ours(SERVERS, CACHE / "threads" / "ours", port=OUR_PORT, models=model.parent, enabled=profile)
    rows = []
    with removed_afterwards(ours), by_hand(model) as others:
        ours.run()
        ports = [int(server["port"]) for server in ours.record()]
        for busy, goal in GOALS.items():
            say(f"{busy} of {SERVERS} servers busy")
            got = alternate(ROUNDS, ours=lambda n=busy: rate(ports[:n]), default=lambda n=busy: rate(others[:n]))
            mine, default = median(got["ours"]), median(got["default"])
            rows.append(
                Row(
                    PART,
                    f"{busy} of {SERVERS} servers busy, in sum",
                    mine,
                    "tok/s",
                    "llama-server's default",
                    default,
                    mine / default,
                    f"≥ {goal:g}×",
                    mine / default >= goal,
                    f"ours {spread(got['ours'])}; default {spread(got['default'])}",
                )
            )
    return rows
