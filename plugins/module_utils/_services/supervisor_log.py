# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read exits and restarts of servers from supervisord's own log."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field

EVENT = re.compile(
    r"spawned: '(?P<spawned>[^']+)' with pid (?P<pid>\d+)"
    r"|(?P<end>exited|stopped): (?P<ended>\S+) \((?P<how>.*)\)"
    r"|killing '(?P<killed>[^']+)' \(\d+\) with SIGKILL"
)


@dataclass
class History:
    """The events of one program in supervisord.log."""

    pids: list[int] = field(default_factory=list)
    exit_code: int | None = None
    last_signal: str | None = None

    def restarts_since(self, pid: int | None) -> int:
        """The number of restarts since the process with this PID, the one of the last deliberate start."""
        if pid not in self.pids:
            return 0
        return self.pids[::-1].index(pid)


def parse_log(text: str, histories: dict[str, History]) -> None:
    """Add the events in lines of supervisord.log to the histories, by program."""
    for match in EVENT.finditer(text):
        history = histories.setdefault(match["spawned"] or match["ended"] or match["killed"], History())
        if match["spawned"]:
            history.pids.append(int(match["pid"]))
            history.exit_code, history.last_signal = None, None
        elif match["killed"]:
            history.last_signal = "SIGKILL"
        else:
            history.exit_code = parse_exit(match["how"])
            if match["end"] == "stopped" and history.last_signal is None:
                history.last_signal = "SIGTERM"


def parse_exit(how: str) -> int | None:
    """Return the exit code in a message: 1 for "exit status 1; not expected", 139 for "terminated by SIGSEGV"."""
    status = re.match(r"exit status (\d+)", how)
    if status:
        return int(status[1])
    ended = re.match(r"terminated by (?:signal (\d+)|(SIG\w+))", how)
    if not ended:
        return None
    return 128 + (int(ended[1]) if ended[1] else signal.Signals[ended[2]].value)
