# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Limits of bandwidth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RateLimit:
    """Lets a number of bytes a second pass, for all threads together; 0 means without a limit."""

    def __init__(
        self,
        bytes_per_second: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = bytes_per_second, clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> None:
        """Wait until count bytes may pass. They are paid for after they have passed, so the first never wait."""
        if self._rate <= 0:
            return
        with self._lock:
            now = self._clock()
            wait = max(0.0, self._free_at - now)
            self._free_at = max(self._free_at, now) + count / self._rate
        if wait:
            self._sleep(wait)
