# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Run a command and wait for it, with exactly the given environment and a time limit."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Optional


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
Run = Callable[[Sequence[str], Mapping[str, str], Optional[float]], Completed]


def run_command(
    argv: Sequence[str],
    environment: Mapping[str, str],
    seconds: float | None = None,
    *,
    user: User | None = None,
    before_exec: Callable[[], None] | None = None,
) -> Completed:
    """Run argv in / with only this environment and no standard input; by default without a time limit.

    before_exec is called in the child. Output that is not UTF-8 is replaced. Raises OSError if the program cannot be
    started, TimeoutError if it does not end in time; it is then killed.
    """
    ids = {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": list(user.groups)}
    try:
        # ansible-test prefers AnsibleModule.run_command, but module_utils do not have a module.
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            list(argv),
            env=dict(environment),
            timeout=seconds,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            preexec_fn=before_exec,
            **ids,  # type: ignore[call-overload]
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{argv[0]} did not end within {seconds:g} s") from error
    return Completed(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
