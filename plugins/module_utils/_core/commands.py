# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Run a command and wait for it, with exactly the given environment and a time limit."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .errors import MagiError

# The limit where the caller names none. Every command has one: a driver or file system that hangs must not hang a run.
SECONDS = 60.0
# How long a killed process is waited for. One that hangs in the kernel (a GPU that fell off its bus) never ends.
KILL_SECONDS = 2.0


class CommandTimeoutError(MagiError, TimeoutError):
    """Raised when a command did not end in time."""


class Completed(NamedTuple):
    """How a command ended; code is negative if a signal ended it."""

    code: int
    stdout: str
    stderr: str


class User(NamedTuple):
    """The ids that a command runs with. Only root may choose them."""

    uid: int
    gid: int
    groups: Sequence[int] = ()


# A uid that owns nothing, for a user who does not exist yet.
UNPRIVILEGED = 65534


def ids_of(name: str | None, groups: Sequence[str] = ()) -> User | None:
    """Return a user's ids with further groups, unprivileged ids if it does not exist; None without root."""
    if os.geteuid() != 0:
        return None
    further = [entry.gr_gid for entry in grp.getgrall() if entry.gr_name in groups] if groups else []
    try:
        entry = pwd.getpwnam(name or "")
    except KeyError:
        return User(UNPRIVILEGED, UNPRIVILEGED, further)
    return User(entry.pw_uid, entry.pw_gid, [*further, *os.getgrouplist(entry.pw_name, entry.pw_gid)])


# run(argv, environment, seconds): raises OSError if the program cannot be started, TimeoutError if it hangs.
Run = Callable[[Sequence[str], Mapping[str, str], float], Completed]


def run_command(
    argv: Sequence[str],
    environment: Mapping[str, str],
    seconds: float = SECONDS,
    *,
    user: User | None = None,
    before_exec: Callable[[], None] | None = None,
    given: bytes = b"",
) -> Completed:
    """Run argv in / with only this environment and given as its standard input, in a session of its own.

    before_exec is called in the child. Output that is not UTF-8 is replaced. Raises OSError if the program cannot be
    started, CommandTimeoutError if it does not end in time; it and its children are then killed.
    """
    ids = {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": list(user.groups)}
    # ansible-test prefers AnsibleModule.run_command, which has no time limit.
    child = subprocess.Popen(  # pylint: disable=ansible-bad-function
        list(argv),
        env=dict(environment),
        cwd="/",
        stdin=subprocess.PIPE if given else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=before_exec,
        **ids,  # type: ignore[call-overload]
    )
    try:
        stdout, stderr = child.communicate(given or None, timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(child)
        raise CommandTimeoutError(
            f"{' '.join(argv)[:200]} did not end within {seconds:g} s and was killed. Run it by hand on the host: a "
            "driver, a file system or a service there may hang (see the kernel's log)."
        ) from None
    except BaseException:
        _kill(child)
        raise
    return Completed(child.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))


def output_of(path: str, *arguments: str, seconds: float = SECONDS) -> str | None:
    """Return what a program prints in the caller's environment; None if it fails or cannot be started.

    Raises CommandTimeoutError.
    """
    try:
        done = run_command([path, *arguments], os.environ, seconds)
    except CommandTimeoutError:
        raise
    except OSError:
        return None
    return done.stdout if done.code == 0 else None


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a command with the children in its session, and wait for it only as long as a process needs to end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=KILL_SECONDS)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()
