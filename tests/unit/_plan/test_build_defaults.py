# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flags for a quick stop and for a log with the memory breakdown, where the build has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.stopping import first_wait_seconds
from ansible_collections.magi.llama.plugins.module_utils._plan.build_defaults import log_defaults, stop_defaults
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import PlanError
from ansible_collections.magi.llama.plugins.module_utils._runtime.flags import flags_to_fact
from ansible_collections.magi.llama.plugins.module_utils._runtime.help_text import parse_help

OUTPUTS = Path(__file__).parents[1] / "_runtime/outputs"
FLAGS = flags_to_fact(parse_help((OUTPUTS / "help-11669.txt").read_text()))


@pytest.mark.parametrize(("stop_timeout", "seconds"), [(30, 5), (18, 5), (12, 3), (3, 1), (1, 1), (600, 5)])
def test_interval_leaves_a_clean_stop_its_time(stop_timeout: int, seconds: int) -> None:
    assert stop_defaults({}, FLAGS, stop_timeout) == {"sse_ping_interval": seconds}
    assert seconds < first_wait_seconds(stop_timeout) or stop_timeout < 6


@pytest.mark.parametrize("given", [True, False])
def test_log_has_the_memory_breakdown_unless_the_profile_says_otherwise(given: bool) -> None:
    assert log_defaults({}, FLAGS) == {"log_jsonl": True}
    assert log_defaults({"log_jsonl": given}, FLAGS) == {}
    assert log_defaults({}, {"port": FLAGS["port"]}) == {}


def test_build_without_the_flag_gets_none() -> None:
    assert stop_defaults({}, {"port": FLAGS["port"]}, 30) == {}


@pytest.mark.parametrize("given", [9, "9", -1, 0, "text"])
def test_interval_of_the_profile_is_kept(given: object) -> None:
    assert stop_defaults({"sse_ping_interval": given}, FLAGS, 30) == {}


def test_interval_above_the_stop_time_out_is_refused() -> None:
    with pytest.raises(PlanError, match=r"sse_ping_interval is 30: .* Set servers_stop_timeout to 93 or more"):
        stop_defaults({"sse_ping_interval": 30}, FLAGS, 30)
