# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which backups of a host are kept: the last ones, and the newest of each day, week and month."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Keep:
    """How many backups are kept: of the last ones, and of days, ISO weeks and months that have any."""

    last: int = 10
    daily: int = 7
    weekly: int = 4
    monthly: int = 12


def expired(times: Sequence[datetime], keep: Keep) -> list[datetime]:
    """Return the times, in UTC, of the backups that are not kept any more, the oldest first.

    The newest is always kept: a host that does not change has only that one.
    """
    newest_first = sorted(set(times), reverse=True)
    kept = set(newest_first[: max(keep.last, 1)])
    periods: list[tuple[int, Callable[[datetime], tuple[int, ...]]]] = [
        (keep.daily, lambda time: (time.year, time.month, time.day)),
        (keep.weekly, lambda time: tuple(time.isocalendar()[:2])),
        (keep.monthly, lambda time: (time.year, time.month)),
    ]
    for count, period in periods:
        newest: dict[tuple[int, ...], datetime] = {}
        for time in newest_first:
            newest.setdefault(period(time), time)
        kept.update(list(newest.values())[:count])
    return sorted(set(times) - kept)
