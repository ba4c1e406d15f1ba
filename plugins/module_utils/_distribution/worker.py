# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The process that does a host's part in a run: it outlives the module call that starts it, and ends with the run.

Its folder in the models folder has a lock file, which it holds while it lives, its status, and the inbox for pieces
that come through the controller's connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core.boot import pid_scope
from .._core.errors import MagiError
from .._core.files import json_of, read_regular, write_atomic
from .._core.text import visible_text
from .._core.values import is_loopback
from .job import Job
from .owner import keep_rights, only_as_owner
from .part_file import require_space, written_bytes
from .peer_server import bitmap_of
from .pieces import PIECE_BYTES
from .swarm import Swarm

FOLDER = ".magi-llama-fetch"
STATUS_SECONDS, OPENING_SECONDS = 0.25, 1.0
# Without a sign of the controller, and without a piece got or handed out: the run was killed.
LEASE_SECONDS = 900.0
STOP_SECONDS = 5.0
LOG_BYTES = 4000
END_CHARACTERS = 500
_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class WorkerError(MagiError):
    """The process of a run is gone, or is another run's."""


def _paths(folder: str) -> tuple[str, str, str, str]:
    own = os.path.join(folder, FOLDER)
    return tuple(os.path.join(own, name) for name in ("lock", "status.json", "polled", "worker.log"))  # type: ignore[return-value]


def own_addresses(host: str) -> list[str]:
    """Where to listen to be reached as host: at this address; at any where the host does not know it as its own."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        found = []
    if host == "localhost" or (found == [host] and is_loopback(host)):
        return found
    # A host often has its own name at a loopback address. One behind a translated address listens at all.
    outer = [address for address in found if not is_loopback(address)]
    return [*outer, "::" if any(":" in address for address in outer) else "0.0.0.0"]


def start_worker(job: Job) -> None:
    """Start the process of a job, in place of an earlier run's. Raises MagiError, OSError."""
    stop_worker(job.folder)
    gets = [file for file in job.files if file.role == "get"]
    needed = sum(max(0, file.pieces.size - written_bytes(os.path.join(job.folder, file.name))) for file in gets)
    require_space(job.folder, needed, job.reserve_bytes)
    make_own_folder(job.folder)
    lock, status, _polled, log = _paths(job.folder)
    write_atomic(status, json.dumps({"run": job.run, "complete": False, "error": ""}).encode(), 0o600)
    held = os.open(lock, os.O_RDWR | _NEW, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child = os.fork()
    if child == 0:
        _become_daemon(job, held, log)
    os.waitpid(child, 0)
    # The lock is the process's, which has this open file too.
    os.close(held)


def make_own_folder(folder: str) -> None:
    """Make the run's folder in the models folder. Raises WorkerError where another user has put something there."""
    own = os.path.join(folder, FOLDER)
    if os.path.lexists(own):
        raise WorkerError(
            f"{own} cannot be removed by this user, or is a link: nothing is written there. Look who has made it, and "
            f"remove it; only users who run this may write to {folder}."
        )
    # Unlike with makedirs, one that appears now is an error.
    os.mkdir(own, 0o700)
    os.mkdir(os.path.join(own, "inbox"), 0o700)


def _become_daemon(job: Job, held: int, log: str) -> None:
    """In the child: start the process in a session of its own, and end."""
    status = 1
    try:
        os.setsid()
        if os.fork() == 0:
            keep_rights()
            os.pwrite(held, f"{os.getpid()} {pid_scope()}\n".encode(), 0)
            _detach(held, log)
            run_job(job)
        status = 0
    finally:
        os._exit(status)


def _detach(held: int, log: str) -> None:
    """Let go of everything of the module call: a connection waits until its output is closed."""
    null = os.open(os.devnull, os.O_RDWR)
    written = os.open(log, os.O_WRONLY | _NEW, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(written, 2)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != held:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    sys.stderr = os.fdopen(2, "w", buffering=1)


def run_job(job: Job) -> None:
    """Do a job, keeping its status, until the process is ended or the run is gone. It is the caller's last act."""
    _lock, path, polled, _log = _paths(job.folder)
    begun = {"run": job.run, "complete": False, "error": ""}
    written_at = time.monotonic()

    def opening() -> None:
        nonlocal written_at
        if time.monotonic() - written_at > OPENING_SECONDS:
            written_at = time.monotonic()
            _write_status(path, begun)

    try:
        swarm = Swarm(job, opening=opening)
    except (MagiError, OSError) as error:
        _write_status(path, {**begun, "error": str(error)})
        return
    swarm.start()
    seen: tuple[int, ...] = ()
    alive_at = time.monotonic()
    while time.monotonic() - alive_at < LEASE_SECONDS:
        _take_inbox(job, swarm)
        status = {"run": job.run, **swarm.status(), "pieces": _bitmaps(swarm)}
        _write_status(path, status)
        now = (status["sent"], status["have"], _changed_at(polled))
        if now != seen:
            seen, alive_at = now, time.monotonic()
        time.sleep(STATUS_SECONDS)
    swarm.stop()
    shutil.rmtree(os.path.join(job.folder, FOLDER), ignore_errors=True)


def _bitmaps(swarm: Swarm) -> dict[str, str]:
    return {
        str(number): bitmap_of(set(part.have), len(part.pieces.digests))
        for number, part in enumerate(swarm.files)
        if part is not None
    }


def _write_status(path: str, status: dict[str, Any]) -> None:
    """Write the status, with a beat, which says that this process does something. On a full disk only its end."""
    status = {**status, "beat": int(time.monotonic())}
    try:
        _write_new(path, path + ".new", json.dumps(status).encode())
    except OSError:
        if status["error"] or status["complete"]:
            _write_end(path, status)


def _write_end(path: str, status: Mapping[str, Any]) -> None:
    """Write a short status over the one that is there, which has a block of the disk."""
    short = {**status, "error": status["error"][:END_CHARACTERS], "pieces": {}, "dropped": {}, "unreached": {}}
    content = json.dumps(short).encode()
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.pwrite(descriptor, content, 0) == len(content):
                os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)


def _write_new(path: str, temporary: str, data: bytes) -> None:
    """Write a file through a temporary one, which must not be a link to something else. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    with os.fdopen(os.open(temporary, os.O_WRONLY | _NEW, 0o600), "wb") as stream:
        stream.write(data)
    os.replace(temporary, path)


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _take_inbox(job: Job, swarm: Swarm) -> None:
    """Keep the pieces that have come through the controller. One that is not a piece of the run is an error of it."""
    inbox = os.path.join(job.folder, FOLDER, "inbox")
    for name in os.listdir(inbox) if os.path.isdir(inbox) else ():
        file, _dash, number = name.partition("-")
        if not (file.isdigit() and number.isdigit()):
            continue
        path = os.path.join(inbox, name)
        data = read_regular(path, PIECE_BYTES[0][1] + 1) or b""
        os.unlink(path)
        try:
            pieces = job.files[int(file)].pieces
            if not pieces.is_piece(int(number), data):
                swarm.error = f"{job.files[int(file)].name} has changed on the controller since its pieces were listed."
                return
            swarm.keep(int(file), int(number), data, "controller")
        except OSError as error:
            swarm.error = str(error)
            return


def deliver(folder: str, data: bytes, pieces: Iterable[Sequence[int]]) -> None:
    """Give the process pieces, one after the other in data, each a file's number, its own and its length.

    Raises OSError.
    """
    inbox = os.path.join(folder, FOLDER, "inbox")
    at = 0
    for file, number, length in pieces:
        name = f"{file}-{number}"
        _write_new(os.path.join(inbox, name), os.path.join(inbox, f".{name}"), data[at : at + length])
        at += length


def look_at(folder: str, run: str, seconds: float) -> dict[str, Any]:
    """The status of this run's process; waits up to seconds for its end. Raises WorkerError where it is gone."""
    lock, path, polled, log = _paths(folder)
    until = time.monotonic() + seconds
    while True:
        # It is empty while it is written over.
        status = {"complete": False, "error": "", **json_of(path)}
        if status.get("run") not in (None, run):
            raise WorkerError(
                f"Another run distributes models to {folder} now, and has ended this one. Run again after it."
            )
        if status["complete"] or status["error"]:
            return status
        if holder_of(lock) is None:
            tail = visible_text((read_regular(log, 1 << 20) or b"").decode("utf-8", "replace")[-LOG_BYTES:])
            raise WorkerError(
                f"The process that fetches models to {folder} has ended{': ' + tail if tail else ''}. What it has is "
                "kept in .part files: run again."
            )
        _touch(polled)
        if time.monotonic() >= until:
            return status
        time.sleep(0.1)


def _touch(path: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)


def holder_of(lock: str) -> int | None:
    """The process that holds a lock file, 0 for one of another user or machine; None if no one does."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        # Who may write to the models folder, here or on another machine, could name any process.
        if os.fstat(descriptor).st_uid != os.geteuid():
            return 0
        pid, _space, scope = os.pread(descriptor, 200, 0).decode("ascii", "replace").strip().partition(" ")
        return int(pid) if pid.isdecimal() and scope == pid_scope() else 0
    finally:
        os.close(descriptor)
    return None


def stop_worker(folder: str, run: str | None = None) -> bool:
    """End the process of a run, by default of any, and remove its folder; whether there was one. Raises WorkerError."""
    lock, path, _polled, _log = _paths(folder)
    if run is not None and json_of(path).get("run") not in (None, run):
        return False
    until = time.monotonic() + STOP_SECONDS
    sent, found = 0, False
    while (pid := holder_of(lock)) is not None:
        found = True
        if pid and sent < 2:
            with contextlib.suppress(ProcessLookupError, PermissionError), only_as_owner():
                os.kill(pid, signal.SIGTERM if sent == 0 else signal.SIGKILL)
            sent += 1
        if time.monotonic() > until:
            if pid:
                raise WorkerError(f"The process {pid} that fetches models to {folder} does not end: end it by hand.")
            raise WorkerError(
                f"The process of another machine or user that fetches models to {folder} does not end. Hosts that "
                "share a models folder need one run on one of them: --limit it to that host, or wait for its end."
            )
        time.sleep(0.1)
    own = os.path.join(folder, FOLDER)
    if os.path.isdir(own) and not os.path.islink(own):
        shutil.rmtree(own, ignore_errors=True)
        found = True
    return found
