# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which a container begins and ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import RecordError
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import AdminSocket, AdminSocketError
from ansible_collections.magi.llama.plugins.module_utils._health.idle import Look
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceError, Stopped
from magi_container import roles, stopping
from magi_container.network import own_address
from magi_container.settings import SettingsError, read_settings

# Nothing is read of it; a temporary folder's path may be too long for sockets.
STATE = Path("/none")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(roles, "DEPLOYED", tmp_path / "deployed")
    monkeypatch.setattr(roles.places, "INVENTORY", tmp_path / "hosts.yml")
    monkeypatch.setattr(roles.places, "STATE", tmp_path / "state")
    monkeypatch.setattr(roles, "stop_requested", threading.Event)
    monkeypatch.setattr(roles, "console_command", lambda *_: ["true"])
    monkeypatch.setattr(roles, "wait_for_stop", lambda *_: None)
    monkeypatch.setattr(roles, "end_servers", lambda *_: None)
    return tmp_path


def test_inventory_is_written_when_the_gateways_name_is_known(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def late(peer: str) -> str:
        tries.append(peer)
        if len(tries) < 3:
            raise OSError("no such name")
        return "172.18.0.3"

    monkeypatch.setattr(roles, "own_address", late)
    monkeypatch.setattr(roles, "deploy", lambda *_: 0)
    assert roles.run_magi(read_settings({"MAGI_GATEWAY": "gateway.back"}), {}) == 0
    written = json.loads((places / "hosts.yml").read_text())
    assert written["all"]["children"]["models"]["hosts"]["magi"]["servers_address"] == "172.18.0.3"


def test_a_gateway_without_a_name_is_never_taken_for_this_container() -> None:
    with pytest.raises(OSError):
        own_address("gateway.invalid")
    with pytest.raises(SettingsError, match=r"^MAGI_GATEWAY=gateway\.invalid: .* Start the gateway"):
        roles.reachable_address("gateway.invalid", 0.1, threading.Event())


def server(name: str, stop_timeout: int) -> dict[str, Any]:
    return {"name": name, "stop_timeout": stop_timeout}


class Ends:
    """Requests that are over after so many looks, and what is done besides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, requests: Sequence[int]) -> None:
        self.done: list[str] = []
        self._requests = list(requests)
        monkeypatch.setattr(stopping, "look_at", self._look)
        monkeypatch.setattr(stopping, "read_record", lambda _: {"servers": [server("one", 20), server("two", 45)]})
        monkeypatch.setattr(stopping.SupervisorDriver, "end", self._end)
        monkeypatch.setattr(stopping, "show", self.done.append)

    def _look(self, _state: str, _record: Any, names: Sequence[str]) -> dict[str, Look]:
        count = self._requests.pop(0) if len(self._requests) > 1 else self._requests[0]
        self.done.append(f"{count} requests")
        return dict.fromkeys(names, Look(count))

    def _end(self, timeout: int) -> dict[str, Stopped]:
        self.done.append(f"end {timeout}")
        return {}


def test_servers_are_ended_when_their_requests_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(monkeypatch, [2, 0])
    stopping.end_servers(STATE, 60)
    assert ends.done == ["2 requests", "0 requests", "0 requests", "end 45"]


def test_requests_that_are_not_over_in_time_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends(monkeypatch, [1])
    stopping.end_servers(STATE, 0)
    assert ends.done[1:] == [f"{name}: 1 request is not over after 0 s; it is ended" for name in ("one", "two")] + [
        "end 45"
    ]


def test_a_server_that_cannot_be_ended_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def stuck(_driver: Any, _timeout: int) -> None:
        raise ServiceError("one: not even SIGKILL ends the process; check the host's kernel log.")

    def damaged(_state: str) -> None:
        raise RecordError("deployment.json makes no sense.")

    monkeypatch.setattr(stopping.SupervisorDriver, "end", stuck)
    monkeypatch.setattr(stopping, "read_record", damaged)
    monkeypatch.setattr(stopping, "show", said.append)
    stopping.end_servers(STATE, 1)
    assert said == [
        "requests are not waited for: deployment.json makes no sense.",
        "one: not even SIGKILL ends the process; check the host's kernel log.",
    ]


def test_the_gateways_requests_are_those_of_its_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {("MAGI_m", "one"): {"scur": "2", "qcur": "1"}, ("MAGI_m", "two"): {"scur": "0", "qcur": ""}}
    monkeypatch.setattr(AdminSocket, "statistics", lambda _: rows)
    assert stopping.requests_in(AdminSocket("/none")) == Look(3)

    def gone(_admin: AdminSocket) -> None:
        raise AdminSocketError("HAProxy does not answer")

    monkeypatch.setattr(AdminSocket, "statistics", gone)
    assert not stopping.requests_in(AdminSocket("/none")).is_running
