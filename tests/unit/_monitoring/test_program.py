# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exporter as hosts have it: one program of the standard library."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._monitoring import exporter
from ansible_collections.magi.llama.plugins.module_utils._monitoring.exporter import make_server
from ansible_collections.magi.llama.plugins.module_utils._monitoring.program import exporter_program
from support.pythons import find_pythons


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def port(state_dir: Path) -> Iterator[int]:
    program = state_dir.parent / "exporter.py"
    program.write_text(exporter_program("Managed\nby a run"))
    assert program.read_text().startswith("#!/usr/bin/env python3\n# Managed\n# by a run\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    # Isolated, so that nothing of the collection is found but what the program has.
    # By the oldest Python that hosts may have, where it is here.
    python = find_pythons(["3.9"]).get("3.9", Path(sys.executable))
    with subprocess.Popen([python, "-I", program, state_dir, "127.0.0.1", str(number)]) as process:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert get(number, "/health") == (200, "ok\n")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield number
        process.terminate()


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_program_serves_metrics_of_a_host_without_servers(port: int) -> None:
    code, text = get(port, "/metrics")
    assert code == 200
    assert "magi_llama_collection_ok 1\n" in text
    assert "magi_llama_servers 0\n" in text


def test_program_only_reads(port: int) -> None:
    assert get(port, "/metrics", "POST")[0] == 501
    assert get(port, "/props")[0] == 404


def test_record_that_cannot_be_read_is_a_metric(port: int, state_dir: Path) -> None:
    get(port, "/metrics")
    (state_dir / "deployment.json").write_text("{")
    deadline = time.monotonic() + 30
    while "magi_llama_collection_ok 0\n" not in (found := get(port, "/metrics")[1]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # The time of the last look remains, so that an alert sees its age.
    assert "magi_llama_collection_timestamp_seconds " in found
    assert "magi_llama_servers" not in found


def test_connection_has_one_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then would keep its place for ever, as no read of it takes long."""
    monkeypatch.setattr(exporter, "CONNECTION_SECONDS", 0.3)
    monkeypatch.setattr(exporter, "CONNECTIONS", 1)
    with make_server(str(tmp_path), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with socket.create_connection(server.server_address[:2], timeout=0.05) as client:
                assert trickles_until_closed(client)
            assert get(server.server_address[1], "/health") == (200, "ok\n")
        finally:
            server.shutdown()
            thread.join()


def trickles_until_closed(client: socket.socket) -> bool:
    """Send a request byte by byte without an end; returns whether the other side closed it."""
    for _byte in range(200):
        try:
            client.sendall(b"G")
            if client.recv(1024) == b"":
                return True
        except socket.timeout:
            continue
        except OSError:
            return True
    return False
