# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.processes import processes
from ansible_collections.magi.llama.plugins.module_utils._launch import quoting
from ansible_collections.magi.llama.plugins.module_utils._services import (
    base,
    supervisor,
    supervisor_driver,
    supervisor_log,
)
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceError
from support import reaper

LOG = """\
2026-11-22 04:00:00,000 INFO supervisord started with pid 10
2026-11-22 04:00:01,000 INFO spawned: 'a' with pid 11
2026-11-22 04:00:01,100 INFO spawned: 'b' with pid 12
2026-11-22 04:00:01,150 WARN exited: b (exit status 1; not expected)
2026-11-22 04:00:02,000 INFO success: a entered RUNNING state, process has stayed up for > than 1 seconds (startsecs)
2026-11-22 04:00:02,160 INFO spawned: 'b' with pid 13
2026-11-22 04:00:03,000 WARN exited: a (terminated by SIGSEGV (core dumped); not expected)
2026-11-22 04:00:03,200 WARN exited: b (terminated by SIGABRT; not expected)
2026-11-22 04:00:04,000 INFO spawned: 'a' with pid 14
2026-11-22 04:00:04,100 INFO spawned: 'c' with pid 15
2026-11-22 04:00:05,000 INFO waiting for c to stop
2026-11-22 04:00:10,000 WARN killing 'c' (15) with SIGKILL
2026-11-22 04:00:10,010 WARN stopped: c (terminated by SIGKILL)
2026-11-22 04:00:11,000 INFO spawned: 'd' with pid 16
2026-11-22 04:00:12,000 INFO stopped: d (exit status 0)
"""


def test_log_parser_finds_exits_restarts_and_signals():
    histories = {}
    supervisor_log.parse_log(LOG, histories)
    assert {name: (h.pids, h.exit_code, h.last_signal) for name, h in histories.items()} == {
        "a": ([11, 14], None, None),
        "b": ([12, 13], 134, None),
        "c": ([15], 137, "SIGKILL"),
        "d": ([16], 0, "SIGTERM"),
    }
    assert [histories["a"].restarts_since(pid) for pid in (11, 14, None, 99)] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("exit status 1; not expected", 1),
        ("exit status 0", 0),
        ("terminated by SIGKILL; not expected", 137),
        ("terminated by SIGSEGV (core dumped); not expected", 139),
        ("terminated by signal 35; not expected", 163),
        ("unknown termination cause 0x00ff", None),
    ],
)
def test_exit_descriptions_are_parsed(how, code):
    assert supervisor_log.parse_exit(how) == code


def test_socket_path_too_long_error_names_variable():
    with pytest.raises(ServiceError, match=r"servers_state_dir .* is too long"):
        supervisor_driver.SupervisorDriver("/" + "x" * 100)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (None, None),
        (0, "exit code 0"),
        (1, "exit code 1"),
        (137, "killed by SIGKILL"),
        (255, "exit code 255"),
        (163, "killed by signal 35"),
    ],
)
def test_exit_text(code, text):
    assert base.exit_text(code) == text


SERVE = "print('up', flush=True); import time; time.sleep(600)"
# Ends at the second SIGTERM, as llama-server does with a request in flight.
TWICE = (
    "import signal; seen = []; signal.signal(signal.SIGTERM, lambda *_: seen and exit(1) or seen.append(1)); " + SERVE
)
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SERVE
WRONG = "print('error: invalid argument: --x', flush=True); raise SystemExit(1)"


class Bed:
    """A state directory with programs that replace servers."""

    def __init__(self, root):
        self.root = root
        self.state = str(root)
        (root / "supervisor" / "conf.d").mkdir(parents=True)
        (root / "supervisor" / "supervisord.conf").write_text(
            f"[unix_http_server]\nfile={root}/supervisor/supervisor.sock\n"
            f"[supervisord]\nlogfile={root}/supervisor/supervisord.log\npidfile={root}/supervisor/supervisord.pid\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
            "[include]\nfiles=conf.d/*.conf\n"
        )
        self.manager = supervisor_driver.SupervisorDriver(self.state, str(Path(sys.executable).parent / "supervisord"))

    def add(self, name, code, stop_timeout=5):
        env = {"MAGI_LLAMA_STATE": self.state, "MAGI_LLAMA_SERVER": name}
        (self.root / "supervisor" / "conf.d" / f"{name}.conf").write_text(
            f"[program:{name}]\ncommand={quoting.supervisor_command([sys.executable, '-c', code])}\n"
            f"environment={quoting.supervisor_environment(env)}\nautostart=false\nautorestart=unexpected\nexitcodes=0,1\n"
            f"startsecs=60\nstopwaitsecs={stop_timeout}\nredirect_stderr=true\nstdout_logfile={self.root}/log/{name}.log\n"
        )

    def until(self, name, condition):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            status = self.manager.status([name])[name]
            if condition(status):
                return status
            time.sleep(0.02)
        raise AssertionError(f"{name} stays {status}")

    def serving(self, name):
        deadline = time.monotonic() + 10
        while self.manager.log_tail(name, 1) != ["up"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self.manager.status([name])[name].pid


@pytest.fixture
def bed():
    # A short folder: pytest's path is too long for a socket.
    root = Path(tempfile.mkdtemp(prefix="magi"))
    reaper.watch(root)
    bed = Bed(root)
    yield bed
    infos = bed.manager._infos() or {}
    bed.manager.stop(sorted(infos), 10)
    bed.manager.forget(sorted(infos))
    bed.manager.shutdown_if_idle()
    for process in processes(bed.state).values():
        os.kill(process.pid, signal.SIGKILL)
    shutil.rmtree(root)


def test_changed_server_restarts_and_other_keeps_process(bed, monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_PORT", "1")
    bed.add("a", SERVE)
    bed.add("b", SERVE)
    assert {name: status.state for name, status in bed.manager.status(["a", "x"]).items()} == {
        "a": "stopped",
        "x": "absent",
    }
    assert bed.manager.start(["a", "b"]) == {}
    a, b = bed.serving("a"), bed.serving("b")
    assert sorted(p.pid for p in processes(bed.state).values()) == sorted([a, b])
    environment = Path(f"/proc/{a}/environ").read_text()
    assert "LLAMA_ARG" not in environment
    assert "Max core file size        0                    0" in Path(f"/proc/{a}/limits").read_text()

    bed.add("b", SERVE + " # changed")
    stopped = bed.manager.stop(["b"], 5)["b"]
    assert (stopped.pid, stopped.signal) == (b, "SIGTERM")
    assert 0 <= stopped.seconds < 2
    assert bed.manager.start(["b"]) == {}
    status = bed.manager.status(["a", "b"])
    assert status["a"].pid == a
    assert status["b"].pid not in (None, b)
    assert status["b"].restarts == 0


def test_exit_1_is_reported_with_code_and_log(bed):
    bed.add("a", WRONG)
    bed.manager.start(["a"])
    status = bed.until("a", lambda status: not status.is_alive)
    assert (status.state, status.exit_code, status.exit_text) == ("restarting", 1, "exit code 1")
    assert bed.manager.log_tail("a", 5) == ["error: invalid argument: --x"]
    bed.manager.stop(["a"], 5)
    status = bed.manager.status(["a"])["a"]
    assert (status.state, status.exit_code) == ("failed", 1)


def test_log_of_a_failed_start_leaves_out_earlier_starts(bed):
    for text in ("first", "second"):
        bed.add("a", WRONG.replace("--x", f"--{text}"))
        bed.manager.start(["a"])
        bed.until("a", lambda status: not status.is_alive)
        assert bed.manager.log_tail("a", 5) == [f"error: invalid argument: --{text}"]
        assert bed.manager.start_logs({"a": 1}) == {"a": [f"error: invalid argument: --{text}"]}
        bed.manager.stop(["a"], 5)
    log = bed.root / "log" / "a.log"
    log.rename(bed.root / "log" / "a.log.1")
    log.write_text("after a rotation\n")
    assert bed.manager.log_tail("a", 5) == ["after a rotation"]
    bed.manager.forget(["a"])
    assert (bed.root / "supervisor" / "log_marks.json").read_text() == "{}"


def test_killed_server_is_restarted(bed):
    bed.add("a", SERVE)
    bed.manager.start(["a"])
    pid = bed.serving("a")
    os.kill(pid, signal.SIGKILL)
    status = bed.until("a", lambda status: status.pid not in (None, pid))
    assert (status.state, status.restarts) == ("running", 1)


KILLS = ("stopped: c", "killing 'a'", "killing 'b'")


def test_server_ignoring_sigterm_is_killed_without_delaying_others(bed):
    bed.add("a", STUBBORN, stop_timeout=1)
    bed.add("b", STUBBORN, stop_timeout=1)
    bed.add("c", SERVE)
    bed.manager.start(["a", "b", "c"])
    for name in "abc":
        bed.serving(name)
    stopped = bed.manager.stop(["a", "b", "c", "d"], 1)
    assert [stopped[name].signal for name in "abcd"] == ["SIGKILL", "SIGKILL", "SIGTERM", None]
    # By supervisord's log: c ended before the deadline of a, and b's deadline began together with a's.
    log = (bed.root / "supervisor/supervisord.log").read_text().splitlines()
    at = {what: next(datetime.fromisoformat(line[:23]) for line in log if what in line) for what in KILLS}
    assert at["stopped: c"] < at["killing 'a'"]
    assert abs(at["killing 'b'"] - at["killing 'a'"]).total_seconds() < 1
    assert stopped["a"].seconds >= 1
    assert stopped["c"].seconds < stopped["a"].seconds
    pid = supervisor.daemon_pid(bed.state)
    assert bed.manager.shutdown_if_idle()
    assert not os.path.exists(f"/proc/{pid}/exe")
    assert not (bed.root / "supervisor" / "supervisor.sock").exists()


def test_server_stuck_in_its_stop_ends_by_second_sigterm(bed):
    bed.add("a", TWICE, stop_timeout=30)
    bed.manager.start(["a"])
    pid = bed.serving("a")
    stopped = bed.manager.stop(["a"], 3)["a"]
    assert (stopped.pid, stopped.signal) == (pid, "second SIGTERM")
    assert 1 <= stopped.seconds < 3


def test_stray_stuck_in_its_stop_ends_by_second_sigterm(bed):
    bed.add("a", TWICE)
    bed.manager.start(["a"])
    pid = bed.serving("a")
    ended = base.terminate(processes(bed.state).values(), bed.state, 6)[pid]
    assert ended.signal == "second SIGTERM"
    assert 2 <= ended.seconds < 6


def test_missing_program_is_a_start_error(bed):
    bed.add("a", SERVE)
    config = bed.root / "supervisor" / "conf.d" / "a.conf"
    config.write_text(config.read_text().replace(sys.executable, "/no/such/program"))
    assert "/no/such/program" in bed.manager.start(["a", "x"])["a"]
    assert bed.manager.start(["x"]) == {"x": "x has no launch config: run site.yml first."}


def test_removed_server_is_forgotten(bed):
    bed.add("a", SERVE)
    bed.add("b", SERVE)
    bed.manager.start(["a", "b"])
    (bed.root / "supervisor" / "conf.d" / "a.conf").unlink()
    bed.manager.stop(["a"], 5)
    bed.manager.forget(["a"])
    assert {name: status.state for name, status in bed.manager.status(["a", "b"]).items()} == {
        "a": "absent",
        "b": "running",
    }


def test_servers_without_supervisord_are_strays(bed):
    bed.add("a", STUBBORN)
    bed.manager.start(["a"])
    pid = bed.serving("a")
    os.kill(int((bed.root / "supervisor" / "supervisord.pid").read_text()), signal.SIGKILL)
    status = bed.until("a", lambda status: bed.manager._infos() is None)
    assert (status.state, status.pid) == ("running", pid)
    bed.manager._ensure_running()
    statuses = bed.manager.status(["a"])
    assert statuses["a"].state == "stopped"
    [stray] = base.strays(bed.state, statuses)
    assert stray.pid == pid
    ended = base.terminate([stray], bed.state, 0.3)[pid]
    assert (ended.name, ended.signal) == ("a", "SIGKILL")
    assert processes(bed.state) == {}


def test_servers_without_supervisord_can_be_stopped(bed):
    bed.add("a", SERVE)
    bed.manager.start(["a"])
    pid = bed.serving("a")
    os.kill(int((bed.root / "supervisor" / "supervisord.pid").read_text()), signal.SIGKILL)
    bed.until("a", lambda status: bed.manager._infos() is None)
    stopped = bed.manager.stop(["a", "b"], 5)
    assert (stopped["a"].pid, stopped["a"].signal, stopped["b"].pid) == (pid, "SIGTERM", None)
    assert bed.manager.status(["a"])["a"].state == "stopped"
    bed.manager.start(["a"])
    assert bed.serving("a") != pid


def test_program_file_broken_is_named(bed):
    bed.add("a", SERVE)
    bed.manager.start(["a"])
    (bed.root / "supervisor" / "conf.d" / "b.conf").write_text("[program:b]\nautostart=false\n")
    with pytest.raises(ServiceError, match=r"conf\.d.*program:b"):
        bed.manager.start(["a"])


def test_start_without_config_fails(bed):
    (bed.root / "supervisor" / "supervisord.conf").unlink()
    with pytest.raises(ServiceError, match=r"supervisord\.conf is missing"):
        bed.manager.start(["a"])


def test_server_gains_no_privileges(bed):
    """It has this from supervisord, which has it from what starts it."""
    bed.add("a", SERVE)
    assert bed.manager.start(["a"]) == {}
    status = Path(f"/proc/{bed.serving('a')}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
