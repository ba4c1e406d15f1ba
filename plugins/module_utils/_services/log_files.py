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
from .server_log import lines_since, plain_lines

TAIL_BYTES = 65536
# For more than the last start.
MAX_READ_BYTES = 4 << 20
# stdout_logfile_backups of the programs.
BACKUPS = 3


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

    def last(self, name: str, lines: int, since: float | None) -> list[str]:
        """Return the last lines of a server's log, of any of its processes, also from the files before a rotation."""
        text, written = "", None
        for path in (self._path(name), *(f"{self._path(name)}.{number}" for number in range(1, BACKUPS + 1))):
            try:
                with open(path, "rb") as stream:
                    state = os.fstat(stream.fileno())
                    stream.seek(max(0, state.st_size - MAX_READ_BYTES + len(text)))
                    text = stream.read().decode("utf-8", "replace") + text
            except OSError:
                break
            written = written if written is not None or not state.st_size else state.st_mtime
            if text.count("\n") > lines or len(text) >= MAX_READ_BYTES:
                break
        found = text.split("\n")
        if since is not None:
            found = lines_since(found, since, written or 0.0)
        return [line for line in plain_lines(found) if line.strip()][-lines:]

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
