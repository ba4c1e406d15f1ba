# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The run lock: one run at a time on a host. A file in the state directory names the run and the lock's expiry.

The lock is a lease, since modules are short-lived processes and a run may be killed anywhere: its holder renews it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .boot import boot_id
from .errors import MagiError
from .files import make_folders
from .ownership import OwnershipError, require_trusted

# How long the lock of a killed run blocks runs from other controllers: not longer than these wait by default. A module
# call that takes longer renews the lock meanwhile (keep_renewed). While several hosts take turns at a change without
# downtime, a run has a longer lease on each (__servers_turn_seconds): nothing renews it while others have their turn.
LEASE_SECONDS = 300.0
# Runs whose lock was taken over are remembered, the last ones: they change nothing more.
LOST_LIMIT = 20


class LockError(MagiError):
    """Raised when the lock cannot be written or another run holds it."""


@dataclass(frozen=True)
class Run:
    """An Ansible run: its id, and the details shown in messages."""

    id: str
    controller: str
    user: str
    pid: int
    playbook: str
    since: str = ""

    def __str__(self) -> str:
        return f"{self.playbook} by {self.user} on {self.controller} (pid {self.pid}, since {self.since})"


@dataclass(frozen=True)
class Held:
    """A lock read from the file: the run that holds it, and the seconds until it expires unless renewed."""

    run: Run
    seconds_left: float


def lock_path(state_dir: str) -> str:
    """Return the path of the lock file."""
    return os.path.join(state_dir, "run.lock")


def acquire(
    state_dir: str,
    run: Run,
    *,
    lease: float = LEASE_SECONDS,
    dead: str | None = None,
    proc: str = "/proc",
    is_exact: bool = False,
) -> Held | None:
    """Acquire or renew the lock; returns None, or the other run's lock. dead is the id of a run known to have ended.

    A longer lease that the run has is kept, unless is_exact.
    Raises LockError if the lock cannot be written.
    """
    try:
        require_trusted(state_dir)
        make_folders(state_dir)
        with _opened(state_dir, os.O_RDWR | os.O_CREAT) as descriptor:
            found = _read(descriptor, proc)
            if found is not None and found.run.id not in (run.id, dead):
                return found
            before = _read(descriptor, proc, expired=True)
            lost = [*_lost(descriptor), *([before.run.id] if before is not None else [])]
            since = found.run.since if found is not None and found.run.id == run.id else run.since
            # For messages only; nothing depends on the host's clock.
            since = since or time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            boot, now = _clock(proc)
            # One that the run took for a long wait.
            own = found.seconds_left if found is not None and found.run.id == run.id and not is_exact else 0.0
            held: dict[str, Any] = {**asdict(run), "since": since, "boot": boot, "expires": now + max(lease, own)}
            held["lost"] = [one for one in dict.fromkeys(lost) if one != run.id][-LOST_LIMIT:]
            _write(descriptor, held)
    except OSError as error:
        raise LockError(
            f"{lock_path(state_dir)} could not be written: {error.strerror}. Nothing was changed; free disk space or "
            "fix the permissions and run again."
        ) from error
    return None


def release(state_dir: str, run_id: str) -> bool:
    """Release the lock; returns whether this run held it."""
    # A lock that cannot be released, for example on a read-only disk, expires.
    with contextlib.suppress(OSError, OwnershipError), _opened(state_dir, os.O_RDWR) as descriptor:
        found = _read(descriptor)
        if found is not None and found.run.id == run_id:
            lost = _lost(descriptor)
            if lost:
                # Overwritten in place: this also works on a full disk.
                _write(descriptor, {"lost": lost})
                return True
            # Truncated first, for the same reason.
            os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):
                if os.listdir(state_dir) == [os.path.basename(lock_path(state_dir))]:
                    # Nothing is deployed, as after a refusal: leave no file behind.
                    os.unlink(lock_path(state_dir))
            return True
    return False


def holder(state_dir: str, proc: str = "/proc", *, expired: bool = False) -> Held | None:
    """Return the current lock, None if no run holds it; with expired, also an expired lock that was not released."""
    try:
        with _opened(state_dir, os.O_RDONLY) as descriptor:
            return _read(descriptor, proc, expired=expired)
    except OSError:
        return None


def describe_holder(found: Held | None, run_id: str) -> dict[str, Any] | None:
    """Return the lock as module output, so that the controller waits or fails; None if no other run holds it."""
    if found is None or found.run.id == run_id:
        return None
    return {**asdict(found.run), "text": str(found.run), "seconds_left": round(found.seconds_left, 1)}


def renew(state_dir: str, run_id: str | None, lease: float = LEASE_SECONDS, *, is_exact: bool = False) -> None:
    """Renew this run's lock before it changes the host. Raises LockError if another run holds the lock.

    A longer lease that the run has is kept, unless is_exact.

    An expired lock is acquired again if it is free. A run without a lock may continue while no other run holds it. One
    whose lock was taken over may not, also when the other run is over.
    """
    other = holder(state_dir)
    if other is None and run_id is not None and run_id in _lost_in(state_dir):
        raise LockError(
            "Another run has changed this host since: the lock of this run had expired or was taken over. Nothing more "
            "was changed; run again."
        )
    if other is None or other.run.id == run_id:
        mine = holder(state_dir, expired=True)
        if mine is None or mine.run.id != run_id:
            return
        with contextlib.suppress(LockError):
            other = acquire(state_dir, mine.run, lease=lease, is_exact=is_exact)
    if other is not None and other.run.id != run_id:
        raise LockError(f"Another run is changing this host: {other.run}. Run again when it has ended.")


@contextlib.contextmanager
def keep_renewed(
    state_dir: str | None, run_id: str | None, lease: float = LEASE_SECONDS
) -> Iterator[Callable[[], None]]:
    """Renew this run's lock at once and as long as the block takes; yields what raises LockError if it was lost.

    Raises LockError if another run holds it at the beginning. Without a state directory or a run nothing is done.
    """
    if state_dir is None or run_id is None:
        yield lambda: None
        return
    renew(state_dir, run_id, lease)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(lease / 4):
            # What changes the host asks again.
            with contextlib.suppress(LockError, OwnershipError):
                renew(state_dir, run_id, lease)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lambda: renew(state_dir, run_id, lease)
    finally:
        ended.set()
        thread.join()


def _lost_in(state_dir: str) -> list[str]:
    try:
        with _opened(state_dir, os.O_RDONLY) as descriptor:
            return _lost(descriptor)
    except OSError:
        return []


def _lost(descriptor: int) -> list[str]:
    try:
        lost = json.loads(os.pread(descriptor, 65536, 0))["lost"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [str(one) for one in lost] if isinstance(lost, list) else []


@contextlib.contextmanager
def _opened(state_dir: str, flags: int) -> Iterator[int]:
    require_trusted(lock_path(state_dir))
    descriptor = _locked(lock_path(state_dir), flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(path: str, flags: int) -> int:
    """Open the file with flock, held briefly to serialise the writes of concurrent modules."""
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A release may have removed the file between the two calls: then another run opens a new one.
            if os.fstat(descriptor).st_nlink > 0:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _read(descriptor: int, proc: str = "/proc", expired: bool = False) -> Held | None:
    try:
        found = json.loads(os.pread(descriptor, 65536, 0))
        run = Run(**{field.name: found[field.name] for field in fields(Run)})
        boot, now = _clock(proc)
        left = float(found["expires"]) - now
    except (ValueError, KeyError, TypeError):
        # The file is empty, or was cut short by a full disk.
        return None
    return Held(run, left) if expired or (found.get("boot") == boot and left > 0) else None


def _write(descriptor: int, held: Mapping[str, Any]) -> None:
    data = (json.dumps(held, indent=2) + "\n").encode()
    # Written in place, so that a renewal works on a full disk.
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))
    os.fsync(descriptor)


def _clock(proc: str) -> tuple[str, float]:
    """Return the boot id and the seconds since boot: clock changes do not affect them, and a reboot ends every lock."""
    with open(f"{proc}/uptime", encoding="utf-8") as stream:
        uptime = float(stream.read().split()[0])
    return boot_id(proc), uptime
