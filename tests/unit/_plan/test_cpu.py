# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sharing the cores among servers that compute on the CPU."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._plan.cpu import (
    Demand,
    busy_threads,
    oversubscription,
    share_cores,
)
from hypothesis import given
from hypothesis import strategies as st


def demands(*shares: float) -> list[Demand]:
    return [Demand(f"s{number}", share) for number, share in enumerate(shares)]


@pytest.mark.parametrize(
    ("cores", "shares", "busy", "expected"),
    [
        pytest.param(2, [1], None, [2], id="one server has all cores"),
        pytest.param(2, [1, 1], None, [1, 1], id="two share two"),
        pytest.param(2, [1, 1, 1, 1], None, [1, 1, 1, 1], id="never less than one"),
        pytest.param(16, [1, 1, 1, 1], None, [4, 4, 4, 4], id="equal shares"),
        pytest.param(16, [1, 1, 1], None, [6, 5, 5], id="no core is left over"),
        pytest.param(16, [3, 1], None, [12, 4], id="by weight"),
        pytest.param(16, [0.5, 0.5], None, [8, 8], id="shares are relative"),
        pytest.param(16, [1, 1, 1, 1], 1, [16, 16, 16, 16], id="one busy at a time"),
        pytest.param(16, [1, 1, 1, 1], 2, [8, 8, 8, 8], id="two busy at a time"),
        pytest.param(16, [3, 1, 1, 1], 2, [12, 4, 4, 4], id="the two largest are busy"),
        pytest.param(4, [100, 0.01, 0.01, 0.01], None, [1, 1, 1, 1], id="as many servers as cores"),
        pytest.param(8, [100, 0.01, 0.01], None, [6, 1, 1], id="a small share is a whole core"),
        pytest.param(16, [1, 1], 9, [8, 8], id="more busy than there are"),
    ],
)
def test_cores_are_shared(cores: int, shares: list[float], busy: int | None, expected: list[int]) -> None:
    assert list(share_cores(cores, demands(*shares), busy).values()) == expected


def test_own_number_is_taken_off_what_others_share() -> None:
    assert share_cores(8, [Demand("own", threads=4), *demands(1, 1)]) == {"own": 4, "s0": 2, "s1": 2}
    assert share_cores(8, [Demand("own", threads=8), *demands(1)]) == {"own": 8, "s0": 1}


@given(
    st.integers(1, 256),
    st.lists(st.floats(0.01, 100), min_size=1, max_size=20),
    st.none() | st.integers(1, 20),
)
def test_busy_threads_never_exceed_the_cores(cores: int, shares: list[float], busy: int | None) -> None:
    threads = share_cores(cores, demands(*shares), busy)
    assert all(1 <= count <= cores for count in threads.values())
    at_once = min(len(shares), busy or len(shares))
    # Where there are more busy servers than cores, each has one thread.
    assert busy_threads(threads, busy) == (cores if busy is None else busy_threads(threads, busy)) or at_once > cores
    assert busy_threads(threads, busy) <= max(cores, at_once)


def test_own_numbers_above_the_cores_are_a_warning() -> None:
    (warning,) = oversubscription(8, {"a": 8, "b": 6}, 14)
    assert warning.startswith("14 threads compute at once on 8 cores") and "a (8), b (6)" in warning
    assert oversubscription(8, {"a": 4, "b": 4}, 8) == []
    assert oversubscription(2, {}, 4) == []
