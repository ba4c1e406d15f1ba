# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The pace of starts."""

from __future__ import annotations

import time
from collections.abc import Callable

from .probe import Server, ask_health

# Servers that load at the same time spin their threads against each other: twenty on two processors take twice as long,
# and four times the work, as when each has its moment. A large model needs longer than that and is not waited for.
LOAD_PATIENCE = 0.25
LOAD_POLL = 0.02


class Pace:
    """The pace of starts: each server has the machine to itself until it is ready, and for a moment at most.

    ready are the seconds to readiness of those that were seen to be ready meanwhile, by name: who looks after the last
    start only would count the other starts too.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.ready: dict[str, float] = {}
        self._clock, self._sleep = clock, sleep
        self._loading: dict[str, tuple[Server, float]] = {}

    def on_started(self, server: Server, last: bool) -> None:
        """To be called with each server when its process has been started; waits before the next, if there is one."""
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
