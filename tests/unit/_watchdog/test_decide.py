# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a server counts as hung, and when the watchdog may restart it."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._watchdog.decide import (
    Decision,
    Policy,
    Seen,
    Verdict,
    decide,
    restarted,
)

NOW = 1_795_830_000.0
HUNG = Verdict("hung", "no answer within 9 s")
POLICY = Policy("restart", 3)


def after(*verdicts: Verdict, seen: Seen | None = None, policy: Policy = POLICY) -> Decision:
    """The last decision about process 7, one look a minute."""
    decision = Decision(seen or Seen(7), False)
    for place, verdict in enumerate(verdicts):
        before = decision.seen if place or seen else None
        decision = decide(before, 7, verdict, NOW + 60 * place, policy)
    return decision


def test_server_is_restarted_after_two_failures_in_a_row() -> None:
    first = after(HUNG)
    assert (first.restarts, first.seen.state) == (False, "suspected")
    assert first.text == "no answer within 9 s; it counts as hung if this happens once more"
    second = after(HUNG, HUNG)
    assert (second.restarts, second.seen.state, second.text) == (True, "hung", "it hangs: no answer within 9 s")


@pytest.mark.parametrize("between", ["answers", "busy", "skipped"])
def test_failures_that_are_not_in_a_row_do_not_count(between: str) -> None:
    assert not after(HUNG, Verdict(between), HUNG).restarts


def test_failure_of_an_earlier_process_does_not_count() -> None:
    assert not after(HUNG, seen=Seen(6, "suspected", failures=1)).restarts
    assert after(HUNG, seen=Seen(7, "suspected", failures=1)).restarts


def test_report_does_not_restart_and_says_so_once() -> None:
    report = Policy("report", 3)
    second = after(HUNG, HUNG, policy=report)
    assert not second.restarts and second.seen.state == "hung"
    assert second.text == "it hangs: no answer within 9 s; it is left as it is, as servers_watchdog is report"
    assert after(HUNG, HUNG, HUNG, policy=report).text is None
    assert after(HUNG, HUNG, Verdict("answers"), policy=report).text == "it answers again"
    assert after(Verdict("answers"), Verdict("answers")).text is None


@pytest.mark.parametrize(
    ("ago", "says"),
    [
        # After the first restart it waits for 2 minutes, after the second one for 4.
        ([100], "it was restarted once within an hour, so not again before 2026-11-28T01:40:20Z"),
        ([130], None),
        ([1000, 200], "it was restarted 2 times within an hour, so not again before 2026-11-28T01:40:40Z"),
        ([1000, 250], None),
        # Three within an hour are the budget, which the oldest leaves first.
        (
            [3000, 2000, 1000],
            "it was restarted 3 times within an hour, which is all that servers_watchdog_restarts allows, so not",
        ),
        ([3700, 2000, 1000], None),
        # The clock was set back.
        ([-500], None),
    ],
)
def test_restarts_back_off_within_a_budget(ago: list[float], says: str | None) -> None:
    seen = Seen(7, "suspected", failures=1, restarts=tuple(NOW - seconds for seconds in ago))
    decision = after(HUNG, seen=seen)
    assert decision.restarts == (says is None)
    assert (says or "it hangs") in str(decision.text)


def test_budget_of_none_never_restarts() -> None:
    assert not after(HUNG, HUNG, policy=Policy("restart", 0)).restarts


def test_restart_is_remembered_until_the_server_answers() -> None:
    seen = restarted(after(HUNG, HUNG).seen, 8, NOW)
    assert (seen.pid, seen.state, seen.failures, seen.restarts, seen.last_restart) == (8, "restarted", 0, (NOW,), NOW)
    loading = decide(seen, 8, Verdict("skipped", "loading"), NOW + 60, POLICY)
    assert (loading.seen.state, loading.text) == ("restarted", None)
    answers = decide(loading.seen, 8, Verdict("answers"), NOW + 120, POLICY)
    assert (answers.seen.state, answers.text, answers.seen.restarts) == ("answers", "it answers again", (NOW,))
    assert Seen.load(answers.seen.as_dict()) == answers.seen
    assert decide(answers.seen, 8, Verdict("answers"), NOW + 4000, POLICY).seen.restarts == ()
