# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""HAProxy's admin socket: commands to the process that serves, without a reload."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Mapping

from .fleet import GatewayError

SECONDS = 10.0
# As many answers of a new worker, one after another, mean that the old one takes no connections any more.
SETTLED_ANSWERS = 8
MAX_BYTES = 16 * 1024 * 1024
# Entries of a map for one command: HAProxy takes no longer line than its buffer.
ENTRIES = 500


class AdminSocketError(GatewayError):
    """Raised if HAProxy does not answer on its admin socket, or refuses a command."""


class NotRunningError(AdminSocketError):
    """Raised if nothing listens on the admin socket: HAProxy does not run. One that hangs does, and serves."""


class AdminSocket:
    """The admin socket at a path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def ask(self, command: str, seconds: float = SECONDS) -> str:
        """Send a command and return the answer. Raises AdminSocketError, without HAProxy NotRunningError."""
        deadline = time.monotonic() + seconds
        found = bytearray()
        try:
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise OSError(errno.ENOTSOCK, "it is not a socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(seconds)
                connection.connect(self._path)
                connection.sendall(command.encode() + b"\n")
                while part := connection.recv(65536):
                    found += part
                    if len(found) > MAX_BYTES:
                        raise AdminSocketError(f"HAProxy's answer on {self._path} is longer than {MAX_BYTES} bytes.")
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError("it does not end its answer")
                    connection.settimeout(left)
        except OSError as error:
            kind = (
                NotRunningError if isinstance(error, (FileNotFoundError, ConnectionRefusedError)) else AdminSocketError
            )
            raise kind(f"HAProxy does not answer on {self._path}: {error.strerror or error}.") from error
        return found.decode("utf-8", "replace")

    def do(self, command: str) -> None:
        """Send a command that answers nothing where it succeeds. Raises AdminSocketError with what it answers."""
        answer = self.ask(command).strip()
        if answer:
            raise AdminSocketError(f"HAProxy refused {command.split(chr(10))[0]!r:.80}: {answer:.200}")

    def pid(self) -> int | None:
        """The PID of the worker that serves; None while there is none."""
        with contextlib.suppress(AdminSocketError, ValueError):
            for line in self.ask("show info", 2.0).splitlines():
                if line.startswith("Pid:"):
                    return int(line.partition(":")[2])
        return None

    def wait_for_worker(self, other_than: int | None, seconds: float) -> int | None:
        """The PID of a worker that serves and is another than this one; None if there is none in time.

        Until the other one has the signal to end, both take connections to the socket: what is asked next must not
        reach that one, which would keep a change to itself.
        """
        deadline = time.monotonic() + seconds
        needed, found = (1 if other_than is None else SETTLED_ANSWERS), 0
        while time.monotonic() < deadline:
            pid = self.pid()
            found = found + 1 if pid is not None and pid != other_than else 0
            if found == needed:
                return pid
            time.sleep(0.05 if found == 0 else 0.02)
        return None

    def replace_map(self, path: str, content: Mapping[str, str]) -> None:
        """Give a map this content at once: requests see the old one or the new one. Raises AdminSocketError."""
        answer = self.ask(f"prepare map {path}")
        version = answer.rpartition(":")[2].strip()
        if not version.isdigit():
            raise AdminSocketError(f"HAProxy has no map {path}: {answer.strip():.200}")
        entries = sorted(content.items())
        for first in range(0, len(entries), ENTRIES):
            lines = "".join(f"{key} {value}\n" for key, value in entries[first : first + ENTRIES])
            self.do(f"add map @{version} {path} <<\n{lines}")
        self.do(f"commit map @{version} {path}")

    def checks(self) -> dict[tuple[str, str], str]:
        """The outcome of each server's last check by backend and name, such as L7OK, or INI before the first one."""
        # A check under way has a star in front of the last outcome.
        return {key: row["check_status"].lstrip("* ") for key, row in self.statistics().items()}

    def servers_up(self) -> set[tuple[str, str]]:
        """The servers, by backend and name, that get requests and have passed a check."""
        return self.servers_by_check()[0]

    def servers_by_check(self) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """The servers, by backend and name, that get requests: those that have passed a check, and the others."""
        # Of those that go down at the next failed check it says UP 1/2.
        used = {key: row for key, row in self.statistics().items() if row["status"].startswith("UP")}
        unchecked = {key for key, row in used.items() if row["check_status"].lstrip("* ") in ("", "INI")}
        return used.keys() - unchecked, unchecked

    def statistics(self) -> dict[tuple[str, str], dict[str, str]]:
        """HAProxy's statistics of each server, by backend and name."""
        lines = self.ask("show stat -1 4 -1").splitlines()
        names = lines[0].lstrip("# ").split(",") if lines else []
        rows = [dict(zip(names, line.split(","))) for line in lines[1:] if line]
        return {(row["pxname"], row["svname"]): row for row in rows if "check_status" in row}


def parse_map(text: str) -> dict[str, str]:
    """The content of a map's file."""
    pairs = (line.partition(" ") for line in text.splitlines() if line)
    return {key: value for key, _space, value in pairs}
