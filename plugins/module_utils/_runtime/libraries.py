# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which shared libraries a llama-server is loaded with."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from .._core.commands import CommandTimeoutError, Run
from .._core.links import is_below
from .probe import PROBE_ENVIRONMENT, PROBE_SECONDS, gpu_backend_files

# A distribution's programs have their libraries where the distribution puts them.
_DISTRIBUTION = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/libexec")
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/.+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_SCRIPT_BYTES = 65536
_PATH = re.compile(rb"(?<![\w.:/-])/[\w.+@/-]+")


def loaded_files(program: str, run: Run) -> list[str]:
    """Return the paths of the shared libraries of a program and of its GPU backends, as the loader finds them.

    Of a script, these are the programs and files that it names. Empty where that is unknown, as on a host without ldd.
    """
    real = os.path.realpath(program)
    if is_below(real, _DISTRIBUTION):
        return []
    named = named_by_script(real)
    programs = [real, *(path for path in named if os.access(path, os.X_OK))]
    return [*named, *_libraries([*programs, *(file for path in programs for file in gpu_backend_files(path))], run)]


def _libraries(files: Sequence[str], run: Run) -> list[str]:
    try:
        done = run(["ldd", *files], PROBE_ENVIRONMENT, PROBE_SECONDS)
    except (CommandTimeoutError, OSError):
        return []
    return list(dict.fromkeys(_LIBRARY.findall(done.stdout)))


def named_by_script(path: str) -> list[str]:
    """Return the files that a script names by absolute paths; none if the program is not a script."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(_SCRIPT_BYTES)
    except OSError:
        return []
    if not text.startswith(b"#!"):
        return []
    named = dict.fromkeys(os.fsdecode(word) for word in _PATH.findall(text.partition(b"\n")[2]))
    return [word for word in named if os.path.isfile(word)]
