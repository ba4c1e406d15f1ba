# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of running servers: crash, hang, lost port, and changes of the clock and the environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from support import hang
from support.bed import ALL, Bed

Q3, Q4 = "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"


def test_server_killed_or_crashed_restarts_and_is_counted(bed: Bed) -> None:
    before = bed.status()
    for number, crash in enumerate((signal.SIGKILL, signal.SIGSEGV), start=1):
        was = bed.pids()[Q4]
        os.kill(was, crash)
        deadline = time.monotonic() + 20
        while bed.pids().get(Q4) in (was, None):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        status = bed.wait_ready()
        assert status[Q4]["restarts"] == before[Q4]["restarts"] + number
    assert status[Q3]["pid"] == before[Q3]["pid"]
    assert status[Q3]["restarts"] == before[Q3]["restarts"]


def test_server_hanging_with_good_health_is_found_by_verify(bed: Bed) -> None:
    victim = bed.status()[Q4]
    command = [sys.executable, hang.__file__, str(victim["pid"]), "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "hangs":
            pytest.skip("processes cannot be traced here")
        with urllib.request.urlopen(f"http://127.0.0.1:{victim['port']}/health", timeout=5) as answer:
            assert answer.status == 200
        assert bed.status()[Q4]["state"] == "ready"
        asked = {"state_dir": str(bed.state), "deep": True, "timeout": 2.0, "interval": 0.2}
        deep = bed.module("wait_for_health", **asked)
        states = {server["name"]: server["state"] for server in deep["servers"]}
        assert deep["failed"] and states == {Q3: "ready", Q4: "hung"}
        assert (
            f"{Q4} (port {victim['port']}): not ready after 2 s: /health is 200, but /completion gave no answer"
            in deep["msg"]
        )
        bed.run("verify", "-e", "verify_timeout=2", code=2).expect(
            f"{Q4} port {victim['port']}: FAILED", "no answer within 2 s", f"{Q3} port", ": ok in"
        )
        bed.run("restart", "-e", f"servers={Q4}").expect(f"{Q4}: restarted", "stuck stop")
    assert bed.wait_ready()[Q4]["pid"] != victim["pid"]


def test_status_shows_memory_as_planned_and_as_loaded(bed: Bed) -> None:
    # After a crash only the service manager has seen the start.
    bed.run("restart", *ALL)
    memory = bed.status()[Q4]["memory"]
    assert memory["rows"][0]["kind"] == "host"
    assert 0 < memory["loaded_bytes"] <= memory["planned_bytes"] + 32 * 1024**2
    bed.run("status").expect("PLANNED", "LOADED")


def test_port_taken_before_start_is_reported_with_holder(bed: Bed) -> None:
    port, other = bed.status()[Q4]["port"], bed.pids()[Q3]
    bed.module("server_state", state_dir=str(bed.state), actions={Q4: "stop"})
    with socket.create_server(("127.0.0.1", port)) as listener:
        failed = bed.run("start", *ALL, code=2)
        failed.expect(
            f"{Q4} (port {port}): exit code 1", f"port {port} is held by pid {os.getpid()}", "its last lines:"
        )
        assert bed.pids() == {Q3: other}
        # A plan made at this point reports it before anything is started.
        bed.run("plan", code=2).expect(f"Port {port} of server {Q4} is held by pid {os.getpid()}")
        assert listener.fileno() >= 0
    bed.run("start", *ALL)
    assert bed.wait_ready()[Q3]["pid"] == other


def test_clock_set_back_changes_nothing(bed: Bed, tmp_path: Path) -> None:
    # The machine's clock cannot be set here: a patched time module shows another time to every Python of the run.
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "ago = 400 * 86400\n"
        "real, real_ns, gmtime, localtime = time.time, time.time_ns, time.gmtime, time.localtime\n"
        "time.time = lambda: real() - ago\n"
        "time.time_ns = lambda: real_ns() - ago * 10**9\n"
        "time.gmtime = lambda s=None: gmtime(time.time() if s is None else s)\n"
        "time.localtime = lambda s=None: localtime(time.time() if s is None else s)\n"
    )
    before, uptime = bed.pids(), bed.status()[Q3]["uptime_seconds"]
    bed.module("server_state", state_dir=str(bed.state), actions={Q4: "stop"})
    repaired = bed.run("site", env={"PYTHONPATH": str(tmp_path)})
    repaired.expect("1 launched, 2 ready")
    assert bed.pids()[Q3] == before[Q3]
    assert bed.status()[Q3]["uptime_seconds"] >= uptime


def test_environment_of_caller_and_user_does_not_reach_servers(bed: Bed, tmp_path: Path) -> None:
    config = tmp_path / "home/.config/llama.cpp/config.ini"
    config.parent.mkdir(parents=True)
    config.write_text("[*]\nthreads-http = 3\nctx-size = 512\n")
    bed.module("server_state", state_dir=str(bed.state), state="stopped")
    overrides = {
        "HOME": str(tmp_path / "home"),
        "LLAMA_ARG_ALIAS": "overridden",
        "LLAMA_ARG_THREADS_HTTP": "3",
        "LLAMA_API_KEY": "overridden",
        "AIP_MODE": "PREDICTION",
        "AIP_HTTP_PORT": str(bed.port + 5),
    }
    started = bed.module("server_state", env=overrides, state_dir=str(bed.state), state="started")
    assert not started.get("failed"), started
    bed.wait_ready()
    for name, process in bed.processes().items():
        environ = Path(f"/proc/{process.pid}/environ").read_bytes().decode()
        assert not [word for word in environ.split("\0") if word.startswith(("LLAMA_", "AIP_"))]
        log = (bed.state / f"log/{name}.log").read_text(errors="replace")
        assert str(config) not in log


def test_restart_with_sequential_profile_is_one_by_one(bed: Bed) -> None:
    path = bed.state / "deployment.json"
    content = json.loads(path.read_text())
    content["deployed"]["start"]["concurrent"] = False
    path.write_text(json.dumps(content))
    try:
        one_by_one = bed.run("restart", *ALL).output
        at_once = bed.run("restart", *ALL, "-e", "servers_concurrent_starts=true").output
    finally:
        content["deployed"]["start"]["concurrent"] = True
        path.write_text(json.dumps(content, indent=2) + "\n")
    # Each server is healthy before the next is started, and the run reports all of them at the end.
    awaited_first = [run.index("  ready in ") < run.index(": restarted") for run in (one_by_one, at_once)]
    assert awaited_first == [True, False]
