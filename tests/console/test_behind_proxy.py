# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The console behind HAProxy, with the configuration of docs/console.md."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.console import RunningConsole, free_port, token_of
from support.pythons import ROOT

from .conftest import fake_console

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is missing: apt-get install haproxy")


@pytest.fixture
def console(tmp_path: Path, fake: object) -> Iterator[RunningConsole]:
    with fake_console(tmp_path, "--behind-proxy") as running:
        yield running


@pytest.fixture
def proxy(tmp_path: Path, console: RunningConsole) -> Iterator[httpx.Client]:
    """A client of the proxy, which is at another address than it asks from."""
    certificate, key, both = tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    both.write_text(certificate.read_text() + key.read_text())
    documented = re.search(r"```text\n# haproxy\.cfg\n(.*?)```", (ROOT / "docs/console.md").read_text(), re.DOTALL)
    assert documented
    port = free_port()
    text = documented[1].replace(":443", f"127.0.0.1:{port}").replace("127.0.0.1:8000", f"127.0.0.1:{console.port}")
    (tmp_path / "haproxy.cfg").write_text(text.replace("/etc/ssl/private/console.pem", str(both)))
    process = subprocess.Popen([str(HAPROXY), "-f", tmp_path / "haproxy.cfg"])
    transport = httpx.HTTPTransport(
        verify=ssl.create_default_context(cafile=str(certificate)), local_address="127.0.0.7"
    )
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", transport=transport, timeout=30) as client:
        deadline = time.monotonic() + 20
        while True:
            try:
                client.get("/health").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
        yield client
    process.terminate()
    process.wait()


def test_page_signs_in_and_the_audit_log_has_the_address_of_the_client(
    proxy: httpx.Client, console: RunningConsole
) -> None:
    headers = {"Origin": str(proxy.base_url), "X-Forwarded-For": "192.0.2.66"}
    answer = proxy.post("/api/v1/session", json={"token": token_of(console.operate)}, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["set-cookie"].startswith("__Host-") and "; Secure" in answer.headers["set-cookie"]
    assert proxy.get("/").headers["content-type"].startswith("text/html")
    assert proxy.post("/api/v1/jobs", json={"verb": "status"}, headers=headers).status_code == 202
    addresses = [entry["address"] for entry in proxy.get("/api/v1/audit").json()["entries"]]
    assert addresses == ["127.0.0.7", "127.0.0.7"]


def test_events_come_through_as_they_happen(proxy: httpx.Client, console: RunningConsole) -> None:
    proxy.headers["Authorization"] = console.read.headers["Authorization"]
    seen: list[str] = []
    opened = threading.Event()

    def read() -> None:
        with proxy.stream("GET", "/api/v1/events", headers={"Accept": "application/x-ndjson"}) as answer:
            opened.set()
            for line in answer.iter_lines():
                seen.append(line)
                if '"run_ended"' in line:
                    return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert opened.wait(20)
    job = console.submit("status")["id"]
    reader.join(20)
    assert not reader.is_alive() and job in seen[-1]
