# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many streams of events are open, so that no one can take all connections."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

# A browser tab has one or two.
STREAMS_EACH, STREAMS = 8, 64


class TooManyStreams(Exception):
    """The text says whose."""


class Streams:
    """Counts open streams by the name of the token."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one_of(self, name: str) -> Iterator[None]:
        """Counts one as long as the block runs. Raises TooManyStreams where there are enough."""
        if self._open[name] >= STREAMS_EACH:
            raise TooManyStreams(f"{name} has {STREAMS_EACH} streams of events open, which is the limit.")
        if self._open.total() >= STREAMS:
            raise TooManyStreams(f"There are {STREAMS} streams of events open, which is the limit.")
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]
