# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that systemd starts on demand: their units, and the program that the units run."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Listener
from ansible_collections.magi.llama.plugins.module_utils._launch import on_demand
from ansible_collections.magi.llama.plugins.module_utils._plan.memory_limits import ram_reserve
from ansible_collections.magi.llama.plugins.module_utils._services import (
    systemd,
    systemd_driver,
    systemd_sockets,
    table,
)
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceStatus
from ansible_collections.magi.llama.plugins.module_utils._services.manager import OnDemandError
from ansible_collections.magi.llama.plugins.module_utils._services.transitions import actions_for, needed

PROGRAM = Path(__file__).resolve().parents[3] / "roles/servers/files/on_demand.py"
PART = {"idle_stop": 60, "pinned": False, "port": 18080, "python": "/usr/bin/python3", "proxy": "/usr/lib/proxy"}
A = "magi-llama-a.service"
SOCKET, PROXY = "magi-llama.wake.a.socket", "magi-llama.wake.a.service"
LOADED = {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "UnitFileState": "static"}


def server(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"name": name, "host": "0.0.0.0", "port": 8080, "max_startup_time": 120, "on_demand": PART, **more}


@pytest.fixture
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("on_demand", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["on_demand"] = module
    spec.loader.exec_module(module)
    return module


# --- the units -------------------------------------------------------------------------------------------------------


def test_server_is_started_for_its_proxy_alone() -> None:
    settings = on_demand.systemd_on_demand(server(), "/srv/my state")
    ask = '/usr/bin/env -i /usr/bin/python3 -I "/srv/my state/on_demand.py"'
    assert settings == {
        "ExecCondition": f'+{ask} admit "/srv/my state" a',
        "ExecStartPost": f"{ask} wait 18080 120 $MAINPID",
        "ExecStopPost": f"+-systemctl stop --no-block --job-mode=fail {PROXY}",
        "TimeoutStartSec": 240,
    }


@pytest.mark.parametrize(("idle", "option"), [(60, "--exit-idle-time=60s "), (None, "")])
def test_proxy_of_a_pinned_server_never_ends(idle: int | None, option: str) -> None:
    command = on_demand.systemd_proxy(server(on_demand={**PART, "idle_stop": idle}), "/state")["ExecStart"]
    assert command == f"/usr/bin/python3 -I /state/on_demand.py pass 18080 /usr/lib/proxy {option}127.0.0.1:18080"


@pytest.mark.parametrize(
    ("host", "listens"), [("::1", "[::1]:8080"), ("localhost", "127.0.0.1:8080"), ("0.0.0.0", "0.0.0.0:8080")]
)
def test_socket_listens_at_the_address_of_the_server(host: str, listens: str) -> None:
    assert on_demand.systemd_listen(server(host=host)) == {"ListenStream": listens}


# --- the service manager ---------------------------------------------------------------------------------------------


def test_supervisor_starts_nothing_on_demand() -> None:
    with pytest.raises(OnDemandError, match=r"^supervisor does not start servers on demand"):
        table.find_manager("supervisor").on_demand_programs("/var/lib/magi-llama")


@pytest.mark.parametrize(
    ("version", "exists", "says"),
    [
        (245, True, "systemd 245 cannot start servers on demand: it needs 246 or newer"),
        (247, False, "/usr/bin/python3 is missing on this host"),
    ],
)
def test_host_without_the_programs_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: int, exists: bool, says: str
) -> None:
    monkeypatch.setattr(systemd_driver.SystemdDriver, "version", lambda _self: version)
    monkeypatch.setattr(systemd.os.path, "exists", lambda _path: exists)
    with pytest.raises(OnDemandError, match=says):
        systemd.Systemd().on_demand_programs("/var/lib/magi-llama")


@pytest.mark.parametrize("folder", ["/home/me/state", "/root/state", "/tmp/state", "/var/tmp/state"])
def test_state_that_the_sandbox_hides_is_refused(folder: str) -> None:
    with pytest.raises(OnDemandError, match=f"^{folder} is hidden from the servers"):
        systemd.Systemd().on_demand_programs(folder)


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of units, with a socket and a proxy of the server a."""
    for module in (systemd, systemd_driver, systemd_sockets):
        monkeypatch.setattr(module, "UNIT_FOLDER", str(tmp_path))
    (tmp_path / "magi-llama.target.wants").mkdir()
    mark = "\nEnvironment=MAGI_LLAMA_STATE=/state\n"
    (tmp_path / A).write_text(mark)
    (tmp_path / SOCKET).write_text(f"[Socket]\nListenStream=0.0.0.0:8080\n{mark}")
    (tmp_path / PROXY).write_text(mark)
    return tmp_path


def test_sockets_are_found_with_and_without_root(units: Path) -> None:
    assert systemd.Systemd().sockets("/state") == {"a": 8080}
    assert systemd.Systemd().sockets("/other") == {}
    by_init, hidden, other = (
        {8080: Listener(8080, ("0.0.0.0",), pids[0] if pids else None, "", pids)} for pids in ((1, 7), (), (7,))
    )
    found = [table.open_sockets("systemd", "/state", held) for held in (by_init, hidden, other, {})]
    assert found == [{"a": 8080}, {"a": 8080}, {}, {}]


class FakeSystemctl:
    def __init__(self, shown: dict[str, dict[str, str]]) -> None:
        self.shown, self.calls = shown, []  # type: ignore[var-annotated]

    def __call__(self, command: list[str], seconds: float = 60.0) -> tuple[int, str, str]:
        if command[1] == "show":
            names = command[command.index("--") + 1 :]
            blocks = [{"Id": name, **self.shown.get(name, {"LoadState": "not-found"})} for name in names]
            return 0, "\n\n".join("\n".join(f"{k}={v}" for k, v in block.items()) for block in blocks), ""
        self.calls.append(command[1:])
        return 0, "", ""


def test_only_the_socket_is_enabled_and_started(units: Path) -> None:
    link = units / "magi-llama.target.wants" / A
    link.symlink_to(units / A)
    systemctl = FakeSystemctl({A: LOADED, SOCKET: {**LOADED, "UnitFileState": "disabled"}, PROXY: LOADED})
    driver = systemd_driver.SystemdDriver(systemctl)
    driver.reload(["a"])
    assert driver.start(["a"]) == {}
    assert systemctl.calls[:3] == [
        ["enable", "--quiet", SOCKET],
        ["reset-failed", SOCKET, PROXY, A],
        ["start", SOCKET],
    ]
    # It would start the server at boot, and keep it.
    assert not link.is_symlink()


def test_stop_ends_socket_and_proxy_also_where_their_files_are_gone(units: Path) -> None:
    (units / "magi-llama.target.wants" / SOCKET).symlink_to(units / SOCKET)
    (units / SOCKET).unlink()
    (units / PROXY).unlink()
    active = {**LOADED, "ActiveState": "active"}
    systemctl = FakeSystemctl({A: active, SOCKET: active, PROXY: active})
    driver = systemd_driver.SystemdDriver(systemctl)
    driver.stop(["a"], 1)
    assert systemctl.calls == [["stop", SOCKET, PROXY, A]]
    driver.reload(["a"])
    assert not (units / "magi-llama.target.wants" / SOCKET).is_symlink()


@pytest.mark.parametrize(
    ("unit", "listening", "expected"),
    [
        ({}, "active", ServiceStatus("a", "sleeping")),
        ({"ActiveState": "active", "MainPID": "5"}, "active", ServiceStatus("a", "running", 5)),
        ({"ActiveState": "activating", "MainPID": "5"}, "active", ServiceStatus("a", "starting", 5)),
        (
            {"ActiveState": "failed", "ExecMainCode": "1", "ExecMainStatus": "1"},
            "active",
            ServiceStatus("a", "sleeping", None, 1, "exit code 1"),
        ),
        (
            {"ActiveState": "failed", "Result": "timeout"},
            "active",
            ServiceStatus("a", "sleeping", exit_text="it failed"),
        ),
        ({"ExecMainCode": "1", "ExecMainStatus": "0"}, "active", ServiceStatus("a", "sleeping")),
        ({}, "inactive", ServiceStatus("a", "stopped")),
        ({}, "failed", ServiceStatus("a", "failed", exit_text="its socket failed (None)")),
    ],
)
def test_server_behind_a_socket_sleeps(
    units: Path, unit: dict[str, str], listening: str, expected: ServiceStatus
) -> None:
    systemctl = FakeSystemctl({A: {**LOADED, **unit}, SOCKET: {**LOADED, "ActiveState": listening}})
    assert systemd_driver.SystemdDriver(systemctl).status(["a"]) == {"a": expected}


def test_server_that_sleeps_is_up_and_can_be_stopped() -> None:
    statuses = {"a": ServiceStatus("a", "sleeping")}
    assert actions_for("started", statuses) == {}
    assert actions_for("stopped", statuses) == {"a": "stop"}
    assert needed({"a": "start"}, statuses, [], [server()]) == {}
    assert needed({"a": "stop"}, statuses, [], [server()]) == {"a": "stop"}


def test_launch_configs_are_all_ours(units: Path) -> None:
    manager = systemd.Systemd()
    paths = manager.config_paths("/state", server())
    assert set(paths) == {os.path.join(systemd.UNIT_FOLDER, unit) for unit in (A, SOCKET, PROXY)}
    assert len(manager.config_paths("/state", {"name": "b"})) == 1
    assert manager.program_files("/state", [server()]) == {"/state/on_demand.py": "on_demand.py"}
    assert manager.program_files("/state", [{"name": "b"}]) == {}


# --- the program -----------------------------------------------------------------------------------------------------

GIB = 1 << 30


def needs(name: str, ram: int = GIB, gpus: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"name": name, "memory": {"ram_bytes": ram, "vram_bytes": sum(gpus), "gpu_bytes": list(gpus)}}


def test_room_is_made_by_the_least_recently_used(program: ModuleType) -> None:
    awake = [program.Awake(needs(name), True, when) for name, when in (("x", 3), ("y", 1), ("z", 2))]

    def leaving(ram: int | None, both: int | None = None, gpus: tuple[int, ...] = ()) -> Any:
        return program.choose(needs("a"), [needs("always")], awake, program.Limits(ram, both, gpus))

    assert leaving(5 * GIB) == []
    assert leaving(4 * GIB) == ["y"]
    assert leaving(3 * GIB) == ["y", "z"]
    assert leaving(None, 2 * GIB) == ["y", "z", "x"]
    # Nothing is stopped in vain.
    assert leaving(GIB) is None


def test_busy_and_pinned_servers_stay(program: ModuleType) -> None:
    awake = [program.Awake(needs("busy"), False, 1), program.Awake(needs("idle"), True, 2)]
    limits = program.Limits(2 * GIB, None, ())
    assert program.choose(needs("a"), [], awake, limits) == ["idle"]
    assert program.choose(needs("a"), [], awake[:1], program.Limits(GIB, None, ())) is None


def test_each_gpu_has_its_limit(program: ModuleType) -> None:
    awake = [program.Awake(needs("x", 0, (0, GIB)), True, 1), program.Awake(needs("y", 0, (GIB, 0)), True, 2)]
    limits = program.Limits(None, None, (GIB, GIB))
    assert program.choose(needs("a", 0, (GIB, 0)), [], awake, limits) == ["x", "y"]
    assert program.choose(needs("a", 0, (0, GIB)), [], awake, limits) == ["x"]


@pytest.mark.parametrize("total", [512 << 20, 4 * GIB, 16 * GIB, 256 * GIB])
def test_ram_is_counted_as_in_the_plan(program: ModuleType, total: int) -> None:
    assert program.usable_ram(total, total, 0) == total - ram_reserve(total)
    assert program.usable_ram(total, GIB // 4, GIB // 4) == min(total - ram_reserve(total), GIB // 2)


@pytest.fixture
def deployed(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host with the servers a, b and always, of which two fit; returns what was run for a start of a."""
    monkeypatch.setattr(program, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(program, "_memory", lambda: (64 * GIB, 32 * GIB))
    connected: set[int] = set()
    monkeypatch.setattr(program, "_has_connections", connected.__contains__)
    record = {
        "servers": [
            {**needs("always"), "port": 8079},
            {**needs("a"), "on_demand": {**PART, "port": 1}},
            {**needs("b"), "on_demand": {**PART, "port": 2}},
        ],
        "on_demand": {"budget_bytes": 2 * GIB, "gpu_bytes": [], "overcommit": False},
    }
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> str:
        if command[1] == "show":
            return "Id=magi-llama-always.service\nActiveState=active\n\nId=magi-llama-b.service\nActiveState=active\n"
        if command[0] == "systemctl":
            ran.append(command[1:])
        return ""

    monkeypatch.setattr(program, "_run", run)

    def admit(**changes: Any) -> tuple[int, list[tuple[str, ...]]]:
        ran.clear()
        connected.clear()
        connected.update(changes.pop("connected", ()))
        limits = {**record["on_demand"], **changes}
        (tmp_path / "deployment.json").write_text(json.dumps({"deployed": {**record, "on_demand": limits}}))
        return program.admit(str(tmp_path), "a"), ran

    return admit


def test_start_stops_an_idle_server_with_its_proxy(deployed: Any) -> None:
    assert deployed() == (0, [("stop", "magi-llama.wake.b.service", "magi-llama-b.service")])
    assert deployed(budget_bytes=3 * GIB) == (0, [])
    assert deployed(overcommit=True) == (0, [])


def test_start_is_refused_while_the_others_answer_requests(deployed: Any) -> None:
    assert deployed(connected=[2]) == (1, [])


def test_requests_that_wait_for_a_failed_start_are_refused(program: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=program.refuse, args=(listener, 1.0))
        client = HTTPConnection("127.0.0.1", port, timeout=10)
        # It waits in the queue of the socket.
        client.request("POST", "/v1/chat/completions", b"x" * 300_000)
        thread.start()
        answer = client.getresponse()
        assert (answer.status, answer.getheader("Retry-After")) == (503, "5")
        assert json.loads(answer.read())["error"]["code"] == "model_not_ready"
        thread.join()


def test_wait_ends_with_the_process(program: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert program.wait(port, 60, ended.pid) == 1
