# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Space out the starts of servers."""

from __future__ import annotations

import time
from collections.abc import Callable

from .probe import Server, ask_health

# Servers that load at the same time compete for the processors with busy threads: twenty on two processors take twice
# as long, and four times the processor time, as when started one after the other. Large models load longer than this
# and are not waited for.
LOAD_PATIENCE = 0.25
LOAD_POLL = 0.02


class Pace:
    """Delays each start until the previous server is ready, for LOAD_PATIENCE seconds at most.

    ready has the seconds to readiness, by name, of servers that became ready meanwhile: measured after the last start
    only, they would include the time of the later starts.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.ready: dict[str, float] = {}
        self._clock, self._sleep = clock, sleep
        self._loading: dict[str, tuple[Server, float]] = {}

    def on_started(self, server: Server, last: bool) -> None:
        """Call this after starting a server's process; it waits before the next start, unless this is the last."""
        if "on_demand" in server:
            return
        name, now = str(server["name"]), self._clock()
        self._loading[name] = (server, now)
        if last:
            return
        while not self._look(name) and self._clock() < now + LOAD_PATIENCE:
            self._sleep(LOAD_POLL)
        for earlier in [other for other in self._loading if other != name]:
            self._look(earlier)

    def _look(self, name: str) -> bool:
        server, began = self._loading[name]
        if ask_health(server, LOAD_PATIENCE).state != "ready":
            return False
        self.ready[name] = round(self._clock() - began, 2)
        del self._loading[name]
        return True
