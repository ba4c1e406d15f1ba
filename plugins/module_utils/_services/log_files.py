# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The log files of servers under supervisor, read from where their last deliberate start began."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence

from .._core.files import write_atomic
from .._core.ownership import open_trusted

TAIL_BYTES = 65536


class LogFiles:
    """The log files in a state directory. A file has the lines of all processes of a server, one after the other."""

    def __init__(self, state_dir: str, marks_path: str) -> None:
        self._state_dir = state_dir
        self._marks_path = marks_path

    def mark(self, names: Sequence[str]) -> None:
        """Remember the ends of these servers' logs: what follows is of the start that comes next."""
        found = {}
        for name in names:
            with contextlib.suppress(OSError):
                state = os.stat(self._path(name))
                found[name] = (state.st_ino, state.st_size)
        self._write({**{name: mark for name, mark in self._marks().items() if name not in names}, **found})

    def forget(self, names: Sequence[str]) -> None:
        self._write({name: mark for name, mark in self._marks().items() if name not in names})

    def since_start(self, name: str) -> str:
        """Return the end of what a server has logged since its last mark; all of it, if it was rotated since then."""
        inode, size = self._marks().get(name, (0, 0))
        try:
            with open(self._path(name), "rb") as stream:
                state = os.fstat(stream.fileno())
                began = size if state.st_ino == inode and size <= state.st_size else 0
                stream.seek(max(began, state.st_size - TAIL_BYTES))
                return stream.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _path(self, name: str) -> str:
        return os.path.join(self._state_dir, "log", f"{name}.log")

    def _marks(self) -> dict[str, tuple[int, int]]:
        try:
            with open_trusted(self._marks_path) as stream:
                return {str(name): (int(inode), int(size)) for name, (inode, size) in json.load(stream).items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}

    def _write(self, marks: dict[str, tuple[int, int]]) -> None:
        # Without this file an earlier start's lines are shown too; a full disk must not prevent servers from starting.
        with contextlib.suppress(OSError):
            write_atomic(self._marks_path, json.dumps(marks).encode(), 0o644)
