# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway's host answers of its gateway, without changing anything."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import admin_socket, fleet
from ansible_collections.magi.llama.plugins.module_utils._gateway.members import serving_servers
from ansible_collections.magi.llama.plugins.module_utils._gateway.state import read_ready

STATISTICS = """# pxname,svname,scur,status,check_status,
m,a_8080,1,UP,* L7OK,
m,a_8081,0,MAINT,,
m,a_8082,0,UP 1/2,L7TOUT,
m,a_8083,0,UP,INI,
m,a_8084,0,DOWN,L7OK,
m,a_8085,0,DRAIN,L7OK,
"""


class Statistics(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert self.rfile.readline() == b"show stat -1 4 -1\n"
        self.wfile.write(STATISTICS.encode())


class Checking(Statistics):
    """Checks the last server at its second answer."""

    asked = 0

    def handle(self) -> None:
        assert self.rfile.readline() == b"show stat -1 4 -1\n"
        Checking.asked += 1
        self.wfile.write(STATISTICS.replace("INI", "INI" if Checking.asked == 1 else "L7OK").encode())


def gateway(folder: Path) -> str:
    servers = [
        {"name": f"m-{port}", "model_id": "m", "kind": "model", "listens": "0.0.0.0", "port": port, "slots": 1}
        for port in range(8080, 8086)
    ]
    content = fleet.FLEET.stamp({"hosts": {"a": {"address": "192.0.2.1", "servers": servers}}})
    (folder / "fleet.json").write_text(json.dumps(content))
    (folder / "gateway.json").write_text("{}")
    (folder / "run").mkdir()
    return str(folder)


def test_host_without_gateway_has_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        found = read_ready(str(folder))
        assert (found["changed"], found["exists"], found["ready"]) == (False, False, {})


def test_gateway_that_does_not_run_has_no_ready_servers(tmp_path: Path) -> None:
    found = read_ready(gateway(tmp_path))
    assert (found["exists"], found["ready"]) == (True, {})


def test_gateway_that_has_ended_has_no_ready_servers(tmp_path: Path) -> None:
    folder = gateway(tmp_path)
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(f"{folder}/run/admin.sock")
    assert read_ready(folder)["ready"] == {}


def test_gateway_that_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no ready servers all of them would be restarted at once, while it sends them requests."""
    monkeypatch.setattr(admin_socket.AdminSocket.ask, "__defaults__", (0.05,))
    folder = gateway(tmp_path)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/run/admin.sock")
        silent.listen()
        with pytest.raises(admin_socket.AdminSocketError, match=r"does not answer on .*timed out"):
            read_ready(folder)


def test_only_servers_that_get_requests_are_ready(tmp_path: Path) -> None:
    folder = gateway(tmp_path)
    with socketserver.UnixStreamServer(f"{folder}/run/admin.sock", Statistics) as server:
        threading.Thread(target=server.serve_forever).start()
        found = read_ready(folder)
        server.shutdown()
    assert found["ready"] == {"m": {"a": 2}}


def test_servers_that_get_requests_are_serving_once_they_are_checked(tmp_path: Path) -> None:
    folder = gateway(tmp_path)
    admin = admin_socket.AdminSocket(f"{folder}/run/admin.sock")
    with socketserver.UnixStreamServer(f"{folder}/run/admin.sock", Checking) as server:
        threading.Thread(target=server.serve_forever).start()
        at_once, later = serving_servers(admin, 0), serving_servers(admin)
        server.shutdown()
    assert (at_once, later) == (["a_8080", "a_8082"], ["a_8080", "a_8082", "a_8083"])
