# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The driver for supervisor: each server is a program of our own supervisord, controlled over its socket."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import http.client
import json
import os
import resource
import shutil
import socket
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._core.commands import run_command
from .._core.files import write_atomic
from .._core.ownership import open_trusted, require_trusted
from .._core.processes import all_processes, processes
from .._core.stopping import first_wait_seconds
from .base import (
    SECOND_SIGTERM,
    STOP_MARGIN,
    LogLine,
    ServiceError,
    ServiceStatus,
    Stopped,
    at_once,
    exit_text,
    log_lines,
    logged_line,
    terminate,
)
from .log_files import LogFiles
from .supervisor import check_socket_path, daemon_pid, folder_of
from .supervisor_log import History, parse_log

PR_SET_NO_NEW_PRIVS = 38
START_DEADLINE = 15.0
POLL = 0.05

STATES = {
    0: "stopped",
    10: "running",  # STARTING: the process exists and is younger than startsecs
    20: "running",
    30: "restarting",
    40: "stopping",
    100: "failed",
    200: "failed",
    1000: "failed",
}
BACKOFF, STOPPING = 30, 40
FAULT_BAD_NAME, FAULT_SPAWN_ERROR, FAULT_ALREADY_STARTED = 10, 50, 60


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        # The base class closes the connection stored here.
        self._connection = (str(host), _Connection(self._path))
        return self._connection[1]


class SupervisorDriver:
    """Drives the supervisord of a state directory, and starts it if it is not running."""

    def __init__(self, state_dir: str, supervisord: str | None = None) -> None:
        self._state_dir = state_dir
        self._folder = folder_of(state_dir)
        self._socket = os.path.join(self._folder, "supervisor.sock")
        self._log = os.path.join(self._folder, "supervisord.log")
        self._supervisord = supervisord
        self._histories: dict[str, History] = {}
        self._read_to = (0, 0)
        self._logs = LogFiles(state_dir, os.path.join(self._folder, "log_marks.json"))
        check_socket_path(state_dir)

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        infos = self._infos()
        if infos is None:
            # Servers may still run without their supervisord: report them.
            alive = processes(self._state_dir)
            return {name: self._without_supervisord(name, alive[name].pid if name in alive else None) for name in names}
        self._read_log()
        started = self._started()
        return {name: self._status(name, infos.get(name), started.get(name)) for name in names}

    def reload(self, names: Sequence[str]) -> None:
        """Do nothing: start() loads changed programs, so that running servers are not touched."""

    def start(self, names: Sequence[str], on_started: Callable[[str], None] = at_once) -> dict[str, str]:
        if not names:
            return {}
        self._require_trusted()
        self._ensure_running()
        added, changed, _removed = self._reread()
        infos = self._infos() or {}
        self._quietly("supervisor.stopProcess", [(name, False) for name in names if _state(infos, name) == BACKOFF])
        self._quietly("supervisor.removeProcessGroup", [(name,) for name in names if name in changed])
        self._quietly("supervisor.addProcessGroup", [(name,) for name in names if name in {*added, *changed}])
        self._read_log()
        before = {name: len(self._history(name).pids) for name in names}
        self._logs.mark(names)
        faults = {}
        for name in names:
            faults.update(self._quietly("supervisor.startProcess", [(name, False)]))
            on_started(name)
        self._note_started(names, before)
        # A process that exits at once is not a start error: its status shows it.
        harmless = (FAULT_SPAWN_ERROR, FAULT_ALREADY_STARTED)
        return {
            name: _start_error(name, fault)
            for (name, _action), fault in faults.items()
            if fault.faultCode not in harmless
        }

    def stop(self, names: Sequence[str], timeout: float) -> dict[str, Stopped]:
        if not names:
            return {}
        infos = self._infos()
        if infos is None:
            # Processes left behind by a dead supervisord can only be ended by signal.
            left_behind = [process for process in all_processes(self._state_dir) if process.name in names]
            by_name = {stopped.name: stopped for stopped in terminate(left_behind, self._state_dir, timeout).values()}
            return {name: by_name.get(name, Stopped(name, None, None, 0.0)) for name in names}
        self._read_log()
        began = time.monotonic()
        self._quietly("supervisor.stopProcess", [(name, False) for name in names if name in infos])
        ended: dict[str, float] = {}
        stuck: list[str] = []
        while True:
            now = self._infos() or {}
            passed = time.monotonic() - began
            for name in names:
                if _state(now, name) != STOPPING:
                    ended.setdefault(name, passed)
            left = sorted(set(names) - set(ended))
            if not left:
                break
            if not stuck and passed > first_wait_seconds(timeout):
                stuck = left
                self._quietly("supervisor.signalProcess", [(name, "TERM") for name in stuck])
            if passed > timeout + STOP_MARGIN:
                raise ServiceError(
                    f"{', '.join(left)}: not even SIGKILL ends the process; check the host's kernel log."
                )
            time.sleep(POLL)
        self._read_log()
        pids = {name: int(infos.get(name, {}).get("pid", 0)) for name in names}
        return {name: self._stopped(name, pids[name], ended[name], name in stuck) for name in names}

    def forget(self, names: Sequence[str]) -> None:
        if not names:
            return
        if self._infos() is not None:
            self._quietly("supervisor.removeProcessGroup", [(name,) for name in names])
        self._write_started({name: pid for name, pid in self._started().items() if name not in names})
        self._logs.forget(names)

    def log_tail(self, name: str, lines: int) -> list[str]:
        return log_lines(self._logs.since_start(name), lines)

    def logs(self, names: Sequence[str], lines: int, since: float | None = None) -> dict[str, list[LogLine]]:
        return {name: [logged_line(line) for line in self._logs.last(name, lines, since)] for name in names}

    def start_logs(self, pids: Mapping[str, int]) -> dict[str, list[str]]:
        return {name: self._logs.since_start(name).splitlines() for name in pids}

    def shutdown_if_idle(self) -> bool:
        # A failed program, or one to be retried, still has a status to report.
        infos = self._infos()
        if infos is None or any(info["state"] != 0 for info in infos.values()):
            return False
        self._shutdown()
        return True

    def end(self, timeout: float) -> dict[str, Stopped]:
        """End supervisord and all its programs, in any state; does nothing if it is not running."""
        infos = self._infos()
        if infos is None:
            return {}
        stopped = self.stop(sorted(infos), timeout)
        self._shutdown()
        return stopped

    def _shutdown(self) -> None:
        pid = daemon_pid(self._state_dir)
        self._call("supervisor.shutdown")
        deadline = time.monotonic() + START_DEADLINE
        # It removes its socket before it ends. A zombie has no program.
        while (os.path.exists(self._socket) or os.path.exists(f"/proc/{pid}/exe")) and time.monotonic() < deadline:
            time.sleep(POLL)

    def _status(self, name: str, info: dict[str, Any] | None, started_pid: int | None) -> ServiceStatus:
        if info is None:
            return ServiceStatus(name, "absent")
        state = STATES.get(info["state"], "failed")
        history = self._history(name)
        code = None if state == "running" else history.exit_code
        if state == "stopped" and code is not None and history.last_signal is None:
            # It exited by itself before the stop.
            state = "failed"
        text = exit_text(code)
        if state == "failed" and code is None:
            text = str(info.get("spawnerr") or "") or None
        return ServiceStatus(name, state, info["pid"] or None, code, text, history.restarts_since(started_pid))

    def _without_supervisord(self, name: str, pid: int | None) -> ServiceStatus:
        if pid is not None:
            return ServiceStatus(name, "running", pid)
        config = os.path.join(self._folder, "conf.d", f"{name}.conf")
        return ServiceStatus(name, "stopped" if os.path.exists(config) else "absent")

    def _stopped(self, name: str, pid: int, seconds: float, stuck: bool) -> Stopped:
        if not pid:
            return Stopped(name, None, None, 0.0)
        used = self._history(name).last_signal or "SIGTERM"
        return Stopped(name, pid, SECOND_SIGTERM if stuck and used == "SIGTERM" else used, round(seconds, 3))

    def _history(self, name: str) -> History:
        return self._histories.get(name) or History()

    def _read_log(self) -> None:
        """Read the new part of supervisord.log."""
        try:
            with open(self._log, encoding="utf-8", errors="replace") as stream:
                stat = os.fstat(stream.fileno())
                inode, offset = self._read_to
                if inode == stat.st_ino and offset <= stat.st_size:
                    stream.seek(offset)
                else:
                    self._histories = {}
                parse_log(stream.read(), self._histories)
                self._read_to = (stat.st_ino, stream.tell())
        except OSError:
            return

    def _started(self) -> dict[str, int]:
        """The PIDs of servers after their last deliberate start, from which restarts are counted."""
        try:
            with open_trusted(self._started_path) as stream:
                return {str(name): int(pid) for name, pid in json.load(stream).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _note_started(self, names: Sequence[str], before: dict[str, int]) -> None:
        self._read_log()
        pids = {name: self._history(name).pids for name in names}
        first = {name: pids[name][before[name]] for name in names if len(pids[name]) > before[name]}
        self._write_started({**self._started(), **first})

    def _write_started(self, started: dict[str, int]) -> None:
        # Without this file restarts are not counted; a full disk must not prevent servers from starting.
        with contextlib.suppress(OSError):
            write_atomic(self._started_path, json.dumps(started).encode(), 0o644)

    @property
    def _started_path(self) -> str:
        return os.path.join(self._folder, "started.json")

    def _require_trusted(self) -> None:
        """Raise OwnershipError where others could change what supervisord obeys, as root where it is root's."""
        programs = os.path.join(self._folder, "conf.d")
        names = sorted(os.listdir(programs)) if os.path.isdir(programs) else []
        for path in (os.path.join(self._folder, "supervisord.conf"), *(os.path.join(programs, name) for name in names)):
            require_trusted(path)

    def _ensure_running(self) -> None:
        if self._infos() is not None:
            return
        config = os.path.join(self._folder, "supervisord.conf")
        if not os.path.exists(config):
            raise ServiceError(f"{config} is missing: run site.yml first.")
        logs = os.path.join(self._state_dir, "log")
        try:
            os.makedirs(logs, mode=0o750, exist_ok=True)
        except OSError as error:
            raise ServiceError(f"{logs} cannot be created: {error.strerror}.") from error
        for path in glob.glob(f"{glob.escape(self._log)}*"):
            # Older versions let every user of the host write it.
            with contextlib.suppress(OSError):
                os.chmod(path, 0o640)
        program = self._supervisord or _find_supervisord(self._folder)
        require_trusted(program)
        # The servers must not inherit the caller's environment: llama-server obeys LLAMA_ARG_* variables.
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": os.path.expanduser("~"),
            "LANG": "C.UTF-8",
        }
        done = run_command([program, "-c", config], environment, before_exec=_confined())
        deadline = time.monotonic() + START_DEADLINE
        while done.code == 0 and time.monotonic() < deadline:
            if self._infos() is not None:
                return
            time.sleep(POLL / 2)
        raise ServiceError(f"{program} did not start: {(done.stdout + done.stderr).strip() or f'see {self._log}'}")

    def _reread(self) -> tuple[list[str], list[str], list[str]]:
        try:
            [[added, changed, removed]] = self._call("supervisor.reloadConfig")
        except xmlrpc.client.Fault as fault:
            raise ServiceError(
                f"supervisor cannot read its programs in {self._folder}/conf.d: {fault.faultString}"
            ) from fault
        return added, changed, removed

    def _infos(self) -> dict[str, dict[str, Any]] | None:
        """Return each program's state; None if supervisord is not running."""
        try:
            return {str(info["name"]): info for info in self._call("supervisor.getAllProcessInfo")}
        except (FileNotFoundError, ConnectionError):
            return None
        except PermissionError as error:
            raise ServiceError(
                f"{self._socket} belongs to another user's supervisord: run as the user who deployed, or with --become."
            ) from error
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise ServiceError(f"supervisord does not answer on {self._socket}: {error}. See {self._log}.") from error

    def _call(self, method: str, *parameters: Any) -> Any:
        with xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_Transport(self._socket)) as proxy:
            called: Any = proxy
            for part in method.split("."):
                called = getattr(called, part)
            return called(*parameters)

    def _quietly(self, method: str, calls: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], xmlrpc.client.Fault]:
        """Call a method several times in one request; returns faults by the call's parameters."""
        if not calls:
            return {}
        answers = self._call("system.multicall", [{"methodName": method, "params": list(call)} for call in calls])
        return {
            call: xmlrpc.client.Fault(answer["faultCode"], answer["faultString"])
            for call, answer in zip(calls, answers)
            if isinstance(answer, dict) and "faultCode" in answer
        }


def _state(infos: dict[str, dict[str, Any]], name: str) -> int:
    return int(infos.get(name, {}).get("state", 0))


def _start_error(name: str, fault: xmlrpc.client.Fault) -> str:
    if fault.faultCode == FAULT_BAD_NAME:
        return f"{name} has no launch config: run site.yml first."
    return str(fault.faultString)


def _find_supervisord(folder: str) -> str:
    own = os.path.join(folder, "venv", "bin", "supervisord")
    sibling = os.path.join(os.path.dirname(sys.executable), "supervisord")
    found = own if os.access(own, os.X_OK) else shutil.which("supervisord") or sibling
    if not os.access(found, os.X_OK):
        raise ServiceError("supervisord is missing on this host: install the package supervisor, or run site.yml.")
    return found


def _confined() -> Callable[[], None]:
    """Return what supervisord's process does to itself at its start; the servers inherit it."""
    libc = ctypes.CDLL(None)

    def confine() -> None:
        # A server's core dump is as large as its model.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # supervisord opens its log before it applies its own setting.
        os.umask(0o027)
        # Neither supervisord nor a server gains privileges from a setuid program.
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    return confine
