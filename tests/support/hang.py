# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hangs a real llama-server as a GPU driver does: its main thread, which generates tokens, stops; HTTP still works.

python3 hang.py PID SECONDS
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000


def hang(pid: int, seconds: float) -> None:
    """Stop the main thread only; it continues when this process ends."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes, ptrace.restype = [ctypes.c_long] * 4, ctypes.c_long
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if ptrace(request, pid, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, WALL)
    print("hangs", flush=True)
    end = time.monotonic() + seconds
    # The server's parent is notified of its death only after this tracer.
    while time.monotonic() < end and os.waitpid(pid, WALL | os.WNOHANG) == (0, 0):
        time.sleep(0.1)


if __name__ == "__main__":
    hang(int(sys.argv[1]), float(sys.argv[2]))
