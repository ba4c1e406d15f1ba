# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""How a stop is divided: SIGTERM, a wait, a second SIGTERM, another wait, SIGKILL.

With a request in flight, llama-server may never end after one SIGTERM while its /health stays 200; a second one ends it
at once. With an open stream it ends when it writes to that stream next, so after --sse-ping-interval at the latest.
"""

from __future__ import annotations

# The second signal comes after this part of the stop time-out.
_FIRST_PART = 3
# What llama-server needs to end besides the wait for its streams.
_SPARE_SECONDS = 1
SSE_PING_SECONDS = 5


def first_wait_seconds(stop_timeout: float) -> int:
    """Return the seconds between the two SIGTERM, of a stop time-out in seconds."""
    return max(1, int(stop_timeout) // _FIRST_PART)


def sse_ping_seconds(stop_timeout: float) -> int:
    """Return the interval of pings to render, so that a clean stop needs no second SIGTERM."""
    return max(1, min(SSE_PING_SECONDS, first_wait_seconds(stop_timeout) - _SPARE_SECONDS))


def shortest_stop_timeout(ping_seconds: int) -> int:
    """Return the shortest stop time-out for an interval of pings."""
    return _FIRST_PART * (ping_seconds + _SPARE_SECONDS)
