# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which boot of the host this is: after another one, a PID is another process."""

from __future__ import annotations

import os


def boot_id(proc: str = "/proc") -> str:
    """Return an identifier of this boot of the machine or container. Raises OSError."""
    with open(f"{proc}/sys/kernel/random/boot_id", encoding="utf-8") as stream:
        boot = stream.read().strip()
    with open(f"{proc}/1/stat", encoding="utf-8", errors="replace") as stream:
        # A container shares its machine's boot id; the start time of its PID 1 identifies the container's boot.
        first = stream.read().rpartition(")")[2].split()[19]
    return f"{boot}.{first}"


def pid_scope(proc: str = "/proc") -> str:
    """Return an identifier of the processes that a PID of this one is among. Raises OSError.

    Unlike boot_id it needs to read nothing of PID 1, which a host may hide from users.
    """
    with open(f"{proc}/sys/kernel/random/boot_id", encoding="utf-8") as stream:
        boot = stream.read().strip()
    return f"{boot}.{os.stat(f'{proc}/self/ns/pid').st_ino}"
