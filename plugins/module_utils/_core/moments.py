# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Moments as people write them: so long ago, or a date and a time."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from .errors import MagiError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# About ten years; a longer time is a slip.
MAX_DAYS = 3660
_AGO = re.compile(rf"([0-9]{{1,9}})([{''.join(UNITS)}])")


class MomentError(MagiError):
    """Raised for a text that is not a moment."""


def parse_moment(text: str, now: float, what: str = "since") -> float:
    """Return a moment in seconds since the epoch: 10m is so long before now, and 2026-11-27T10:00 is in UTC.

    what names the value in errors. Raises MomentError.
    """
    ago = _AGO.fullmatch(text)
    if ago:
        seconds = int(ago[1]) * UNITS[ago[2]]
        if seconds <= MAX_DAYS * UNITS["d"]:
            return now - seconds
    try:
        # Python 3.9 does not read Z.
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        moment = (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise MomentError(
            f'{what} is "{text:.60}": it is a time before now, such as 90s, 10m, 2h or 3d, or a date with a time in '
            "UTC or with a zone, such as 2026-11-27T10:00 or 2026-11-27T10:00:00+01:00."
        ) from None
    if not 0 <= moment <= now + UNITS["d"]:
        raise MomentError(f'{what} is "{text:.60}", which is not in the past.')
    return moment


def iso_time(moment: float) -> str:
    """Return a moment as 2026-11-27T10:00:00Z."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
