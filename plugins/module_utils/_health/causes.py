# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Find out why a server ended, from its last log lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

# What llama-server writes when it gives up, and what to do about it.
CAUSES = (
    (
        r"couldn't bind HTTP server socket|[Aa]ddress already in use",
        "its port is taken by another process: stop that one, or run with -e servers_move_on_conflict=true",
    ),
    (
        r"invalid argument: (?P<what>\S+)|unknown argument: (?P<what2>\S+)",
        "this llama-server does not know the flag {what}: remove it from the profile, or update llama-server",
    ),
    (
        r"error while handling argument \"(?P<what>[^\"]+)\"",
        "llama-server does not accept the value of {what} in the profile's parameters",
    ),
    (
        r"bad_alloc|out of memory|OutOfDeviceMemory|ErrorOutOfHostMemory|failed to allocate|cannot allocate memory",
        "there is not enough memory: lower ctx_size, parallel or n_gpu_layers, or enable fewer models",
    ),
    (
        r"failed to open GGUF file '(?P<what>.+)' \(Permission denied\)|'(?P<what2>.+)' \(?Permission denied",
        "the servers' user may not read {what}: fix its permissions and those of its parent folders",
    ),
    (
        r"failed to open GGUF file '(?P<what>.+)' \(No such file or directory\)",
        "{what} is missing: restore it, or run site.yml to scan again",
    ),
    (
        r"invalid magic|not within the file bounds|exceeds remaining file size|failed to read key-value|corrupted",
        "the model's file is damaged or incomplete: download it again",
    ),
    (
        r"unknown model architecture: '(?P<what>[^']+)'",
        "this llama-server does not know the architecture {what}: update it",
    ),
    (r"couldn't exec|error while loading shared libraries", "llama-server itself cannot run: check the runtime role"),
    (r"couldn't setuid", "the service manager may not run servers as their user: run with --become"),
)


# A file that is there, and that a server under its service manager does not see.
HIDDEN = (
    "the servers' user can read {what}, but the sandbox of the unit hides it: run site.yml, which opens the sandbox "
    "for what a path leads to now. If that does not help, move the file out of home and temporary folders"
)
HIDDEN_LIBRARY = (
    "the sandbox of the unit hides the library: run site.yml, or move llama-server with its libraries out of home and "
    "temporary folders"
)
LIBRARY = "error while loading shared libraries"
# systemd's exit code for a program that could not be run. It says why in a log that is not the server's.
EXEC_FAILED = 203


def explain(
    log: Sequence[str],
    exit_code: int | None,
    program: str = "",
    is_readable: Callable[[str], bool] = lambda _path: False,
) -> str | None:
    """The likely cause of a server's end and its fix; None if no cause is recognised.

    program is the server's llama-server. is_readable says whether the servers' user may read a file outside the sandbox
    of a unit; false without a sandbox.
    """
    if exit_code == EXEC_FAILED and is_readable(program):
        return HIDDEN.format(what=program)
    # From the end, because the log may also contain messages of an earlier run.
    for line in reversed(log):
        for pattern, fix in CAUSES:
            match = re.search(pattern, line)
            if match:
                what = next((value for value in match.groupdict().values() if value), "")
                if what.startswith("/") and is_readable(what):
                    fix = HIDDEN
                elif LIBRARY in line and is_readable(program):
                    fix = HIDDEN_LIBRARY
                return fix.format(what=what)
    if exit_code == 137:
        return "it was killed, most often for lack of memory: lower ctx_size or parallel, and check the kernel log"
    return None
