# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bench of the gateway runs: a server, a gateway as the role configures it, and LiteLLM's proxy."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.magi.llama.plugins.module_utils._gateway.aliases import names_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import parse_clients
from ansible_collections.magi.llama.plugins.module_utils._gateway.config import files_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, Server
from ansible_collections.magi.llama.plugins.module_utils._gateway.limits import Limits, limits_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.settings import Route, Settings
from bench.measure import (
    CACHE,
    FIRST_PORT,
    ROOT,
    BenchError,
    say,
    write_yaml,
)
from bench.open_loop import KEY, segment
from bench.runs import MODEL, MODELS, healthy

HAPROXY = "/usr/sbin/haproxy"
FOLDER = CACHE / "gateway"
DIRECT, OURS, METRICS, PEER = range(FIRST_PORT + 53, FIRST_PORT + 57)
MODEL_ID = "tiny"
PEER_PACKAGE = "litellm[proxy]"
PEER_NAME = "LiteLLM's proxy"
# A real llama-server is what is asked if its own answers leave a difference to be seen.
QUICK_MS = 2.0


# --- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process of the bench with what /proc says of it."""

    pid: int

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def processor_seconds(self) -> float:
        used = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(command: Sequence[str], log: Path, **environment: str) -> Iterator[Process]:
    """A process until the end of the block; its output is in the log."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield Process(process.pid)
    finally:
        process.kill()
        process.wait()


def wait_for(what: str, log: Path, is_ready: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_ready():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} is not ready after {seconds:g} s: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.1)


def answers(port: int, body: bytes = b"") -> bool:
    """Whether a chat completion is answered."""
    return not segment(port, body or body_of(100), 10, 0.1).failed


def body_of(size: int) -> bytes:
    """A request of this many bytes. The filling is in a field that no model reads."""
    asked = {"model": MODEL_ID, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "user": ""}
    asked["user"] = "x" * max(0, size - len(json.dumps(asked)))
    return json.dumps(asked).encode()


# --- the server ------------------------------------------------------------------------------------------------------

# It reads the request as a whole, and answers from its configuration.
FAKE = """
global
  maxconn 4000
  nbthread 1
  tune.bufsize 2097152
defaults
  mode http
  timeout client 60s
  timeout connect 5s
  timeout server 60s
  timeout http-keep-alive 60s
frontend answers
  bind 127.0.0.1:{port}
  http-request return status 200 content-type application/json string '{models}' if {{ path /v1/models }}
  http-request return status 200 content-type application/json string '{{"status":"ok"}}' if {{ path /health }}
  http-request wait-for-body time 30s at-least 2000000
  http-request return status 200 content-type application/json string '{answer}'
"""


def fake_config(port: int, models: Sequence[str]) -> str:
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "a"}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL_ID, "choices": [choice]}
    listed = {"object": "list", "data": [{"id": model} for model in models]}
    return FAKE.format(
        port=port,
        models=json.dumps(listed, separators=(",", ":")),
        answer=json.dumps({**answer, "usage": usage}, separators=(",", ":")),
    )


@contextmanager
def fake_server(models: Sequence[str]) -> Iterator[None]:
    config, log = FOLDER / "fake.cfg", FOLDER / "fake.log"
    config.write_text(fake_config(DIRECT, models))
    with running([HAPROXY, "-f", str(config)], log):
        wait_for("The fake server", log, lambda: healthy(DIRECT))
        yield


@contextmanager
def real_server() -> Iterator[None]:
    server, log = ROOT / ".cache" / "bin" / "llama-server", FOLDER / "llama-server.log"
    given = ["--model", MODELS / MODEL, "--alias", MODEL_ID, "--port", DIRECT, "--ctx-size", 2048, "--parallel", 4]
    with running([str(server), *map(str, given), "--threads", "1", "--no-webui"], log):
        wait_for("llama-server", log, lambda: healthy(DIRECT))
        yield


@contextmanager
def quick_server(rate: float) -> Iterator[str]:
    """A llama-server of a tiny model if it is quick enough here, otherwise a fake; which of them it is."""
    with real_server():
        segment(DIRECT, body_of(1000), rate, 1)
        found = segment(DIRECT, body_of(1000), rate, 3)
        p95 = found.percentile(95)
        say(f"llama-server at {rate:g} requests a second: p95 {p95:.2f} ms, {found.failed} failed")
        if p95 <= QUICK_MS and not found.failed:
            yield "llama-server with a tiny model, one token"
            return
    with fake_server([MODEL_ID]):
        yield f"a fake that answers at once (llama-server's own p95 was {p95:.1f} ms)"


# --- the gateway and its peer ----------------------------------------------------------------------------------------


def write_gateway(backends: Sequence[Backend], port: int) -> Path:
    """The configuration that the role would write; returns its folder."""
    # The fake answers 100 requests at once.
    settings = Settings(port=port, metrics_port=METRICS, max_queue=1000)
    clients = parse_clients([{"name": "bench", "key": KEY}])
    names = names_of(backends, {}, True)
    limits = limits_of(Limits.common(settings), {}, names, backends)
    folder = FOLDER / "config"
    folder.mkdir(parents=True, exist_ok=True)
    (FOLDER / "run").mkdir(exist_ok=True)
    for name, text in files_of(settings, Route(backends, names, {}, clients, limits)).items():
        (folder / name).write_text(text)
    return folder


def gateway_environment(folder: Path) -> dict[str, str]:
    """That of its unit."""
    variables = yaml.safe_load((ROOT / "roles/gateway/vars/main.yml").read_text())["__gateway_environment"]
    fixed = {name: text for name, text in variables.items() if "{{" not in text}
    return {**fixed, "MAGI_GATEWAY": str(folder), "MAGI_GATEWAY_RUN": str(FOLDER / "run")}


@contextmanager
def gateway(backends: Sequence[Backend]) -> Iterator[Process]:
    folder, log = write_gateway(backends, OURS), FOLDER / "gateway.log"
    with running([HAPROXY, "-f", str(folder / "haproxy.cfg")], log, **gateway_environment(folder)) as process:
        wait_for("The gateway", log, lambda: healthy(OURS))
        yield process


def one_backend() -> list[Backend]:
    return [Backend(MODEL_ID, MODEL_ID, None, "model", (Server("s", "127.0.0.1", DIRECT, 200),))]


def peer_program() -> Path | None:
    """LiteLLM's proxy in an environment of its own, installed once; None if it cannot be installed."""
    program, uv = FOLDER / "litellm" / "bin" / "litellm", ROOT / ".cache" / "uv" / "bin" / "uv"
    if not program.exists():
        say(f"installing {PEER_PACKAGE}")
        python = ROOT / ".venv" / "bin" / "python"
        made = [str(uv), "venv", "--quiet", "--clear", "--python", str(python), str(program.parents[1])]
        into = [str(uv), "pip", "install", "--quiet", "--python", str(program.parent / "python"), PEER_PACKAGE]
        for command in (made, into):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                say(f"it cannot be installed: {done.stderr[-300:]}")
                return None
    return program


@contextmanager
def peer(program: Path) -> Iterator[None]:
    config, log = FOLDER / "litellm.yml", FOLDER / "litellm.log"
    behind = {"model": f"openai/{MODEL_ID}", "api_base": f"http://127.0.0.1:{DIRECT}/v1", "api_key": "none"}
    model = {"model_name": MODEL_ID, "litellm_params": behind}
    write_yaml(config, {"model_list": [model], "general_settings": {"master_key": KEY}})
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(PEER)]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
    with running(command, log, **quiet):
        wait_for(PEER_NAME, log, lambda: answers(PEER), 120)
        yield
