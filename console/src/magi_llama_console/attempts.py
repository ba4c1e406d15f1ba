# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many tokens of an address were refused lately, so that no one can try many."""

from __future__ import annotations

import time
from collections import deque

# Refused tokens of one address, within so many seconds.
ATTEMPTS, ATTEMPTS_SECONDS = 10, 60.0
MAX_ADDRESSES = 10_000
# The audit log is never made shorter, so it has so many refusals of all addresses in so many seconds.
NOTED, NOTED_SECONDS = 20, 600.0


class Attempts:
    """Counts refused tokens by address."""

    def __init__(self) -> None:
        self._refused: dict[str, deque[float]] = {}
        self._noted: deque[float] = deque(maxlen=NOTED)

    def seconds_to_wait(self, address: str) -> int:
        """0 where the address may try."""
        times = self._refused.get(address)
        while times and times[0] < time.monotonic() - ATTEMPTS_SECONDS:
            times.popleft()
        if not times or len(times) < ATTEMPTS:
            return 0
        return int(times[0] + ATTEMPTS_SECONDS - time.monotonic()) + 1

    def refused(self, address: str) -> None:
        if len(self._refused) >= MAX_ADDRESSES and address not in self._refused:
            self._refused.pop(next(iter(self._refused)))
        self._refused.setdefault(address, deque(maxlen=ATTEMPTS)).append(time.monotonic())

    def is_noted(self) -> bool:
        """Whether a refusal is to be in the audit log: not where that has had many lately."""
        at = time.monotonic()
        if len(self._noted) == NOTED and self._noted[0] > at - NOTED_SECONDS:
            return False
        self._noted.append(at)
        return True
