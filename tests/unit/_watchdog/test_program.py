# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watchdog's program, with servers that answer, hang, have requests, or are not its business."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import Run, acquire, holder, release
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._health.observations import for_status
from ansible_collections.magi.llama.plugins.module_utils._health.watched import (
    read_watched,
    watched_for_status,
    watched_path,
)
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all
from ansible_collections.magi.llama.plugins.module_utils._services.base import (
    ServiceError,
    ServiceStatus,
    Stopped,
    at_once,
)
from ansible_collections.magi.llama.plugins.module_utils._watchdog import program
from ansible_collections.magi.llama.plugins.module_utils._watchdog.decide import Policy
from ansible_collections.magi.llama.plugins.module_utils._watchdog.file import watchdog_program
from support.fake_server import FakeServer
from support.schemas import schema

RESTART = Policy("restart", 3)
RUN = Run("c/1/1", "controller", "someone", 1, "site.yml")


class Driver:
    """Servers whose process is this one, which a restart makes answer again."""

    def __init__(self, fakes: dict[str, FakeServer]) -> None:
        self.fakes = fakes
        self.states = dict.fromkeys(fakes, "running")
        self.calls: list[tuple[str, str, bool]] = []
        self.state_dir = ""
        self.failing = ""

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        return {name: ServiceStatus(name, self.states[name], os.getpid()) for name in names}

    def stop(self, names: Sequence[str], timeout: float) -> dict[str, Stopped]:
        self._note("stop", names)
        if self.failing in names:
            raise ServiceError("no bus")
        return {name: Stopped(name, os.getpid(), "SIGKILL", timeout) for name in names}

    def start(self, names: Sequence[str], on_started: Callable[[str], None] = at_once) -> dict[str, str]:
        self._note("start", names)
        for name in names:
            self.fakes[name].hangs = False
        return {}

    def _note(self, call: str, names: Sequence[str]) -> None:
        self.calls += [(call, name, holder(self.state_dir) is not None) for name in names]


class Host:
    """A state directory with servers a and b, and the watchdog."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = str(folder)
        self.fakes = {name: FakeServer(name) for name in "ab"}
        self.driver = Driver(self.fakes)
        self.driver.state_dir = self.folder
        self.more: dict[str, dict[str, Any]] = {}
        monkeypatch.setattr(program, "driver_for", lambda _record, _state_dir: self.driver)
        self.write()

    def write(self, intended: dict[str, str] | None = None) -> None:
        servers = [
            {
                **{"name": name, "model_id": name, "host": "127.0.0.1", "port": fake.port, "argv": ["/x"]},
                **{"stop_timeout": 3, **self.more.get(name, {})},
            }
            for name, fake in self.fakes.items()
        ]
        record = {"profile": "p", "service_manager": "systemd", "start": None, "servers": servers}
        write_all(state_files(self.folder, record, intended=intended)[0])

    def look(self, policy: Policy = RESTART, timeout: float = 0.5) -> list[str]:
        return program.look(self.folder, policy, timeout)[0]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    found = Host(tmp_path, monkeypatch)
    with found.fakes["a"], found.fakes["b"]:
        yield found


def test_server_that_hangs_while_healthy_is_restarted_under_the_lock(host: Host) -> None:
    assert host.look() == []
    host.fakes["a"].hangs = True
    (line,) = host.look()
    assert line.startswith("a: /health is 200, but /completion gave no answer within 0.5 s; it counts as hung if")
    assert host.driver.calls == []
    lines = host.look()
    assert lines[0].startswith("a: it hangs: /health is 200") and "a: restarted, pid" in lines[1]
    assert "ended by SIGKILL in 3.0 s (stuck stop)" in lines[1]
    assert host.driver.calls == [("stop", "a", True), ("start", "a", True)]
    assert holder(host.folder) is None
    assert host.look() == ["a: it answers again"]
    assert for_status(host.folder)["a"]["stuck_stop"] == {"signal": "SIGKILL", "seconds": 3.0}


def test_status_has_what_the_watchdog_saw(host: Host) -> None:
    host.fakes["a"].hangs = True
    for _look in range(2):
        host.look()
    found = watched_for_status(host.folder)
    assert (found["a"]["state"], found["a"]["restarts"], found["b"]["state"]) == ("restarted", 1, "answers")
    assert found["a"]["last_restart"] and found["b"]["last_restart"] is None
    described = schema("status")["$defs"]["server"]["properties"]["watchdog"]["properties"]
    assert set(described) == set(found["a"]) and found["a"]["state"] in described["state"]["enum"]
    Path(watched_path(host.folder)).write_text('{"a": {}}')
    assert read_watched(host.folder) == {}


@pytest.mark.parametrize("step", ["stop", "note"])
def test_restart_that_fails_counts_and_does_not_stop_the_others(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    def note(_state_dir: str, pids: dict[str, int], _digests: object) -> None:
        if "a" in pids:
            raise OSError("no space")

    if step == "stop":
        host.driver.failing = "a"
    else:
        monkeypatch.setattr(program, "note_started_configs", note)
    for fake in host.fakes.values():
        fake.hangs = True
    host.look()
    assert program.main([host.folder, "restart", "0.5", "1"]) == 1
    said = capsys.readouterr().out
    assert f"a: restarting it failed: {'no bus' if step == 'stop' else 'no space'}\n" in said
    assert "b: restarted, pid " in said and holder(host.folder) is None
    seen = read_watched(host.folder)
    assert [(seen[name]["state"], len(seen[name]["restarts"])) for name in "ab"] == [("hung", 1), ("restarted", 1)]
    # So the limit holds for it.
    host.fakes["a"].hangs = True
    calls = len(host.driver.calls)
    assert "all that servers_watchdog_restarts allows" in host.look(Policy("restart", 1))[0]
    assert len(host.driver.calls) == calls


def test_server_is_not_restarted_where_that_cannot_be_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_state_dir: str, _seen: object) -> None:
        raise OSError("no space")

    host.fakes["a"].hangs = True
    host.look()
    monkeypatch.setattr(program, "write_watched", fail)
    lines = host.look()
    assert lines[1:] == [
        "a: restarting it failed: no space",
        "what was seen of the servers could not be noted: no space",
    ]
    assert host.driver.calls == []


def test_report_restarts_nothing(host: Host) -> None:
    host.fakes["a"].hangs = True
    lines = [line for _look in range(3) for line in host.look(Policy("report", 3))]
    assert len(lines) == 2 and "it is left as it is" in lines[1]
    assert host.driver.calls == []


def test_nothing_is_done_while_a_run_has_the_host(host: Host) -> None:
    host.fakes["a"].hangs = True
    host.look()
    assert acquire(host.folder, RUN) is None
    assert host.look() == [] and host.look() == []
    assert host.driver.calls == []
    release(host.folder, RUN.id)
    assert len(host.look()) == 2


def test_run_that_begins_during_the_look_is_not_disturbed(host: Host) -> None:
    host.fakes["a"].hangs = True
    host.look()
    timer = threading.Timer(0.3, lambda: acquire(host.folder, RUN))
    timer.start()
    assert host.look() == []
    timer.join()
    assert host.driver.calls == []


@pytest.mark.parametrize("state", ["starting", "stopping", "stopped", "sleeping", "restarting", "failed"])
def test_server_that_does_not_run_is_left_alone(host: Host, state: str) -> None:
    host.fakes["a"].hangs = True
    host.driver.states["a"] = state
    assert [line for _look in range(3) for line in host.look()] == []
    assert host.fakes["a"].seen == []


@pytest.mark.parametrize(
    "more",
    [
        {"on_demand": {"port": 1, "pinned": False, "idle_stop": None, "python": "/p", "proxy": "/p"}},
        {"stands_in_for": "b"},
    ],
    ids=["on demand", "stand-in"],
)
def test_server_on_demand_or_in_a_change_is_not_probed(host: Host, more: dict[str, Any]) -> None:
    host.more["a"] = more
    host.write()
    host.look()
    assert host.fakes["a"].seen == [] and host.fakes["b"].seen != []


@pytest.mark.parametrize(("seconds", "is_asked"), [("300", False), ("0", False), ("-1", True)])
def test_server_that_sleeps_when_idle_is_not_woken(host: Host, seconds: str, is_asked: bool) -> None:
    host.more["a"] = {"argv": ["/x", "--sleep-idle-seconds", seconds]}
    host.write()
    host.look()
    assert (host.fakes["a"].seen != []) == is_asked and host.fakes["b"].seen != []


def test_server_that_was_stopped_on_purpose_is_not_probed(host: Host) -> None:
    host.write({"a": "stopped", "b": "started"})
    host.look()
    assert host.fakes["a"].seen == [] and host.fakes["b"].seen != []


def test_server_with_requests_is_not_probed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "said_requests", lambda _server, _timeout: 1)
    host.look()
    assert not [path for path, *_rest in host.fakes["a"].seen if path == "/completion"]
    assert read_watched(host.folder)["a"]["state"] == "busy"


def test_requests_that_came_in_during_the_probe_excuse_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0, 2])
    monkeypatch.setattr(program, "said_requests", lambda _server, _timeout: next(answers))
    host.driver.states["b"] = "stopped"
    host.fakes["a"].seconds = 9
    assert host.look() == [] and read_watched(host.folder)["a"]["state"] == "busy"


def test_server_that_computes_for_a_client_is_busy(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch may take minutes on a CPU, and llama-server answers nothing but /health meanwhile."""
    monkeypatch.setattr(program, "_cpu_seconds", lambda _pid: time.monotonic())
    host.fakes["a"].hangs = True
    with socket.create_connection(("127.0.0.1", host.fakes["a"].port)):
        assert [line for _look in range(3) for line in host.look()] == []
    assert host.driver.calls == [] and read_watched(host.folder)["a"]["state"] == "busy"


@pytest.mark.parametrize(
    ("cores", "clients"), [(0.0, 1), (0.4, 1), (4.0, 0)], ids=["no CPU", "little CPU", "no client"]
)
def test_server_that_does_nothing_for_a_client_hangs(
    host: Host, monkeypatch: pytest.MonkeyPatch, cores: float, clients: int
) -> None:
    monkeypatch.setattr(program, "_cpu_seconds", lambda _pid: cores * time.monotonic())
    host.fakes["a"].hangs = True
    with contextlib.ExitStack() as stack:
        for _client in range(clients):
            stack.enter_context(socket.create_connection(("127.0.0.1", host.fakes["a"].port)))
        lines = [line for _look in range(2) for line in host.look()]
    assert "a: it hangs: " in lines[1] and ("start", "a", True) in host.driver.calls


def test_cpu_time_is_that_of_a_process_and_its_children() -> None:
    command = [
        sys.executable,
        "-c",
        "import os, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()",
    ]
    quoted = " ".join(map(shlex.quote, command))
    # The shell stays, as there is something after the program.
    with subprocess.Popen(["sh", "-c", f"{quoted}; :"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        assert program._cpu_seconds(process.pid) >= 0.29
        process.stdin.write(b"\n")
        process.stdin.close()
        process.wait()
        assert program._cpu_seconds(process.pid) == 0


def test_process_of_another_program_on_the_port_gets_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        statuses = {name: ServiceStatus(name, "running", other.pid) for name in "ab"}
        monkeypatch.setattr(host.driver, "status", lambda _names: statuses)
        assert host.look() == []
        other.kill()
    assert host.fakes["a"].seen == [] and read_watched(host.folder)["a"]["state"] == "skipped"


def test_program_runs_without_the_collection(tmp_path: Path) -> None:
    path, state = tmp_path / "watchdog.py", tmp_path / "state"
    path.write_text(watchdog_program("Managed"))
    assert "ansible.module_utils" not in path.read_text()
    state.mkdir()
    # Isolated, so that nothing of the collection is found but what the program has.
    command = [sys.executable, "-I", str(path), str(state), "restart", "1", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (state / "deployment.json").write_text("{")
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 1 and done.stdout.startswith("the watchdog did not look: ") and not done.stderr
