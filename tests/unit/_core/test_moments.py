# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments as people write them."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.moments import MomentError, iso_time, parse_moment

NOW = 1_795_830_000.0


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", NOW - 90),
        ("10m", NOW - 600),
        ("2h", NOW - 7200),
        ("3d", NOW - 3 * 86400),
        ("2026-11-28T01:40", NOW),
        ("2026-11-28 01:40:00", NOW),
        ("2026-11-28T01:40:00Z", NOW),
        ("2026-11-28T02:40:00+01:00", NOW),
        ("2026-11-28", NOW - 6000),
    ],
)
def test_moment_is_read(text: str, moment: float) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize(
    "text", ["", "10", "10 m", "yesterday", "-5m", "99999d", "2026-13-01", "2026-11-28T25:00", "x" * 99]
)
def test_other_text_is_refused_with_examples(text: str) -> None:
    with pytest.raises(MomentError, match=r'since is "[^"]{0,60}": it is a time before now, such as 90s, 10m'):
        parse_moment(text, NOW)


def test_moment_in_the_future_is_refused() -> None:
    with pytest.raises(MomentError, match="not in the past"):
        parse_moment("2027-11-28", NOW)


def test_iso_time_is_utc() -> None:
    assert iso_time(NOW) == "2026-11-28T01:40:00Z"
