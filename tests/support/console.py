# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A console as a process of its own, as users run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from . import reaper
from .pythons import ROOT

PROGRAM = str(Path(sys.executable).with_name("magi-llama-console"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def token_of(client: httpx.Client) -> str:
    return client.headers["authorization"].removeprefix("Bearer ")


class RunningConsole:
    """with RunningConsole(inventory, data) as console: console.read and console.operate are clients with a token."""

    def __init__(
        self,
        inventory: Path,
        data: Path,
        *,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        authority: Path | None = None,
    ) -> None:
        """authority is the certificate that the console's own is verified with; with it https is spoken."""
        self.inventory, self.data, self.arguments = inventory, data, arguments
        self.environment = dict(environment or {})
        self.port = free_port()
        self.url = f"{'https' if authority else 'http'}://127.0.0.1:{self.port}"
        self._verify = ssl.create_default_context(cafile=str(authority)) if authority else False
        self.process: subprocess.Popen[bytes] | None = None
        self.anonymous, self.read, self.operate = self._client(), self._client(), self._client()
        self._clients = [self.anonymous, self.read, self.operate]

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, verify=self._verify)

    def add_token(self, name: str, role: str) -> str:
        command = [PROGRAM, "token", name, "--role", role, "--tokens", str(self.data / "tokens.json")]
        return subprocess.check_output(command, text=True).strip()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [PROGRAM, "--inventory", str(self.inventory), "--data", str(self.data)]
        command += ["--checkout", str(ROOT), "--listen", f"127.0.0.1:{self.port}", *self.arguments]
        # What a job starts is ended with an interrupted test run too.
        command += ["--pass-environment", reaper.MARK]
        self.process = subprocess.Popen(command, env={**os.environ, **self.environment})
        while True:
            try:
                self.anonymous.get("/health").raise_for_status()
                return
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the console ended with {self.process.returncode}") from None
                time.sleep(0.02)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait()
            self.process = None

    def sign_in(self, client: httpx.Client) -> httpx.Client:
        """A browser that was signed in with a client's token: it has the cookie, and sends the origin of the page."""
        browser = self._client()
        browser.headers["Origin"] = self.url
        self._clients.append(browser)
        answer = browser.post("/api/v1/session", json={"token": token_of(client)})
        assert answer.status_code == 201, answer.text
        return browser

    def submit(self, verb: str, *, key: str = "", **variables: Any) -> dict[str, Any]:
        """Request a job; fail unless it is accepted."""
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.operate.post("/api/v1/jobs", json={"verb": verb, **variables}, headers=headers)
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()["job"]
        assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.read.get(f"/api/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()["job"]
        return job

    def wait(self, job_id: str, *states: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until a job is in one of these states; by default until it has ended."""
        wanted = states or ("finished", "failed", "cancelled", "lost")
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] not in wanted:
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def events(self, job_id: str, **headers: str) -> list[dict[str, Any]]:
        """A job's events, until it has ended."""
        lines = {"accept": "application/x-ndjson", **headers}
        text = self.read.get(f"/api/v1/jobs/{job_id}/events", headers=lines, timeout=120).text
        return [json.loads(line) for line in text.splitlines() if line]

    def events_so_far(self, job_id: str) -> list[dict[str, Any]]:
        lines = {"accept": "application/x-ndjson"}
        text = self.read.get(f"/api/v1/jobs/{job_id}/events", params={"follow": False}, headers=lines).text
        return [json.loads(line) for line in text.splitlines() if line]

    def browser(self) -> httpx.Client:
        """A client without a token that keeps cookies and names its origin, as a browser does."""
        return httpx.Client(base_url=self.url, timeout=30, headers={"Origin": self.url})

    def __enter__(self) -> RunningConsole:
        for client, role in ((self.read, "read"), (self.operate, "operate")):
            client.headers["Authorization"] = f"Bearer {self.add_token(f'test-{role}', role)}"
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for client in self._clients:
            client.close()
