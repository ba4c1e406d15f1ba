# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups are kept, by count and by age."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from ansible_collections.magi.llama.plugins.module_utils._archive.retention import Keep, expired

NOW = datetime(2026, 11, 28, 2, 15)
NONE = {"last": 0, "daily": 0, "weekly": 0, "monthly": 0}


def ago(**past: float) -> datetime:
    return NOW - timedelta(**past)


def kept(times: list[datetime], **keep: int) -> list[datetime]:
    return sorted(set(times) - set(expired(times, Keep(**{**NONE, **keep}))))


def test_last_ones_are_kept_by_count() -> None:
    times = [ago(minutes=n) for n in range(30)]
    assert kept(times, last=10) == sorted(times[:10])


def test_newest_of_each_day_is_kept() -> None:
    times = [ago(hours=n) for n in range(0, 240, 6)]
    assert kept(times, daily=7) == [datetime(2026, 11, day, 20, 15) for day in range(22, 28)] + [NOW]


def test_weeks_and_months_count_only_where_there_is_a_backup() -> None:
    times = [NOW, ago(days=70), ago(days=71), ago(days=400), ago(days=800)]
    # 70 and 71 days ago were a Saturday and a Friday of one week.
    assert kept(times, weekly=3) == [ago(days=400), ago(days=70), NOW]
    assert kept(times, monthly=4) == [ago(days=800), ago(days=400), ago(days=70), NOW]


@pytest.mark.parametrize("keep", [{}, {"last": 1}], ids=str)
def test_newest_is_always_kept(keep: dict[str, int]) -> None:
    assert kept([ago(days=999), ago(days=998)], **keep) == [ago(days=998)]


def test_a_year_of_backups_every_hour_is_33_at_most() -> None:
    times = [ago(hours=n) for n in range(24 * 365)]
    left = sorted(set(times) - set(expired(times, Keep())))
    # The ten last ones; 7 days, 4 weeks and 12 months have some in common with them and with each other.
    assert len(left) == 28 and left[-1] == NOW
    # What is kept now is kept when nothing comes in between.
    assert expired(left, Keep()) == []
