# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log files as lines of standard output, where the engine of the containers reads them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.3
# A line without an end is shown once it is that long.
LONGEST_LINE = 16384


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class LogFollower:
    """Shows what is appended to the *.log files of a folder, each line with the file's name in front."""

    def __init__(self, folder: Path, write: Callable[[str], None] = show) -> None:
        self._folder, self._write = folder, write
        # By file: its inode, how far it was read, and the beginning of a line.
        self._read: dict[str, tuple[int, int, bytes]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Follow from here on: what the files have now was shown by the container that wrote it."""
        for path in self._paths():
            stat = path.stat()
            self._read[path.name] = (stat.st_ino, stat.st_size, b"")
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Show what has been appended since the last look."""
        for path in self._paths():
            self._look_at(path)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.log"))

    def _look_at(self, path: Path) -> None:
        inode, offset, begun = self._read.get(path.name, (0, 0, b""))
        try:
            with path.open("rb") as stream:
                found = path.stat()
                if found.st_ino != inode or found.st_size < offset:
                    # It was rotated.
                    inode, offset = found.st_ino, 0
                stream.seek(offset)
                data = stream.read()
        except OSError:
            return
        *lines, rest = (begun + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        self._read[path.name] = (inode, offset + len(data), rest)
        for line in lines:
            self._write(f"{path.stem} | {line.decode(errors='replace').rstrip()}")

    def _follow(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.look()
