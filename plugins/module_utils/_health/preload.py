# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read model files into the page cache while servers still answer, so that the next ones load quickly."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core.argv import PATH_FLAGS, flag_values, shards


def files_of(servers: Iterable[Mapping[str, Any]]) -> list[str]:
    """The files that servers read when they start, each once, with all shards of a model."""
    paths = (path for server in servers for path in flag_values(server["argv"], PATH_FLAGS))
    return list(dict.fromkeys(name for path in paths for name in shards(path)))


def preload(paths: Sequence[str], available_bytes: int) -> int:
    """Have the kernel read these files ahead, as far as they fit into the available memory; returns the bytes.

    It does not wait for the disk. A file that is missing or cannot be read is left out: the server's start reports it.
    """
    total = 0
    for path in paths:
        try:
            # A file that is a pipe by now must not hold the run up.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and total + status.st_size <= available_bytes:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                total += status.st_size
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return total
