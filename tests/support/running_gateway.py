# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real HAProxy with a configuration of the collection, before servers of a test: seconds less than a whole run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import AdminSocket
from ansible_collections.magi.llama.plugins.module_utils._gateway.aliases import names_of, split_names
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.config import files_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, Server
from ansible_collections.magi.llama.plugins.module_utils._gateway.limits import Limits, limits_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.settings import Route, Settings

# Of a console, where the settings have one.
TOKEN = "the-gateway's-token-of-the-console"
HAPROXY = os.environ.get("MAGI_HAPROXY", "/usr/sbin/haproxy")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server(port: int, slots: int = 2) -> Server:
    return Server(f"s_{port}", "127.0.0.1", port, slots)


def rendered(
    backends: Sequence[Backend], clients: Sequence[Client] = (), *, console_token: str = TOKEN, **settings: Any
) -> dict[str, str]:
    """The files of a configuration with these servers, clients and settings."""
    chosen = Settings(**settings)
    names = names_of(backends, chosen.aliases, chosen.families)
    splits = split_names(backends, chosen.aliases, chosen.families)
    limits = limits_of(Limits.common(chosen), chosen.models, names, backends)
    return files_of(chosen, Route(backends, names, splits, clients, limits, console_token))


class Running:
    """A HAProxy that serves; its first model has the key of no one."""

    def __init__(self, folder: Path, files: Mapping[str, str], url: str, metrics: str) -> None:
        self.folder, self.url, self.metrics = folder, url, metrics
        self.config = folder / "config"
        self.config.mkdir()
        self.write(files)
        self.admin = AdminSocket(str(folder / "admin.sock"))
        self.log = folder / "log"
        with open(self.log, "wb") as stream:
            self.process = subprocess.Popen(
                [HAPROXY, "-W", "-f", str(self.config / "haproxy.cfg")],
                env={"PATH": "/usr/bin:/bin", "MAGI_GATEWAY": str(self.config), "MAGI_GATEWAY_RUN": str(folder)},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (self.config / name).write_text(text)

    def reload(self) -> None:
        before = self.admin.wait_for_worker(None, 60)
        assert before, self.log.read_text()
        os.kill(self.process.pid, signal.SIGUSR2)
        assert self.admin.wait_for_worker(before, 60), self.log.read_text()

    def client(self, key: str | None = None, **more: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False, **more)

    def ask(self, model: str, key: str | None = None, headers: Mapping[str, str] | None = None, **more: Any) -> Any:
        body = {"model": model, "prompt": "a", "max_tokens": 2, **more}
        with self.client(key) as client:
            return client.post("/v1/completions", json=body, headers=dict(headers or {}))

    def states(self) -> dict[str, str]:
        """Whether each server is up, by its name."""
        lines = self.admin.ask("show stat -1 4 -1").splitlines()
        columns = lines[0].lstrip("# ").split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines[1:] if line]
        return {row["svname"]: row["status"].split()[0] for row in rows}

    def wait_until(self, wanted: Mapping[str, str], seconds: float = 60) -> float:
        """Wait for these states of servers; returns how many seconds that took."""
        start = time.monotonic()
        while not wanted.items() <= self.states().items():
            assert time.monotonic() < start + seconds, (self.states(), self.log.read_text()[-3000:])
            time.sleep(0.05)
        return time.monotonic() - start

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running(
    folder: Path, backends: Sequence[Backend], clients: Sequence[Client] = (), **settings: Any
) -> Iterator[Running]:
    """A gateway before these servers, once all of them are up."""
    port, metrics = free_port(), free_port()
    files = rendered(backends, clients, port=port, metrics_port=metrics, **settings)
    # The socket's path must be short.
    gateway = Running(folder, files, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}")
    try:
        assert gateway.admin.wait_for_worker(None, 60), gateway.log.read_text()
        gateway.wait_until({one.name: "UP" for backend in backends for one in backend.servers})
        yield gateway
    finally:
        gateway.stop()
