# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What the watchdog makes of the answers of a server: when it counts as hung, and when it may be restarted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .._core.moments import iso_time

# A server that fails so often, one look after the other, hangs.
FAILURES = 2
HOUR = 3600.0
# After the first restart within an hour the next one waits so long, after the second one twice as long, and so on.
BACK_OFF_SECONDS = 120.0
RESTART = "restart"
FAILING = ("suspected", "hung", "restarted")


@dataclass(frozen=True)
class Verdict:
    """The result of one look: answers, busy (it has requests), hung (neither), or skipped (it is loading, say)."""

    state: str
    detail: str | None = None


@dataclass(frozen=True)
class Policy:
    """mode: report or restart. restarts_per_hour are those of one server."""

    mode: str
    restarts_per_hour: int


@dataclass(frozen=True)
class Seen:
    """What is known of a server; times are seconds since the epoch."""

    pid: int
    state: str = "answers"
    detail: str | None = None
    since: float = 0.0
    failures: int = 0
    restarts: tuple[float, ...] = ()
    last_restart: float | None = None

    @classmethod
    def load(cls, known: dict[str, Any]) -> Seen:
        return cls(**{**known, "restarts": tuple(known["restarts"])})

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "restarts": list(self.restarts)}


@dataclass(frozen=True)
class Decision:
    """What is known of the server now, whether to restart it, and what to report; None where nothing is new."""

    seen: Seen
    restarts: bool = False
    text: str | None = None


def decide(before: Seen | None, pid: int, verdict: Verdict, now: float, policy: Policy) -> Decision:
    """Decide about one server; pid is its process now."""
    past = before or Seen(pid, since=now)
    # A clock that was set back must not stop the watchdog.
    recent = tuple(moment for moment in past.restarts if 0 <= now - moment < HOUR)
    is_same = past.pid == pid and before is not None
    failures = (past.failures if is_same else 0) + 1 if verdict.state == "hung" else 0
    state = "suspected" if verdict.state == "hung" and failures < FAILURES else verdict.state
    if verdict.state == "skipped" and is_same:
        # Nothing is known of it now.
        state = past.state
    has_changed = not is_same or past.state != state
    seen = Seen(pid, state, verdict.detail, now if has_changed else past.since, failures, recent, past.last_restart)
    if verdict.state != "hung":
        is_back = is_same and past.state in FAILING and verdict.state != "skipped"
        return Decision(seen, text="it answers again" if is_back else None)
    if state == "suspected":
        return Decision(seen, text=f"{verdict.detail}; it counts as hung if this happens once more")
    why = _refusal(recent, now, policy)
    if why is None:
        return Decision(seen, restarts=True, text=f"it hangs: {verdict.detail}")
    seen = replace(seen, detail=f"{verdict.detail}; {why}")
    return Decision(seen, text=f"it hangs: {seen.detail}" if has_changed or past.detail != seen.detail else None)


def tried(seen: Seen, now: float) -> Seen:
    """What is known of a server that the watchdog is about to restart: it hangs, and that counts as a restart."""
    return replace(seen, restarts=(*seen.restarts, now), last_restart=now)


def restarted(seen: Seen, pid: int, now: float) -> Seen:
    """What is known of a server that the watchdog has restarted."""
    return replace(tried(seen, now), pid=pid, state="restarted", since=now, failures=0)


def _refusal(recent: Sequence[float], now: float, policy: Policy) -> str | None:
    """Return why a server that hangs is not restarted now; None if it is."""
    if policy.mode != RESTART:
        return "it is left as it is, as servers_watchdog is report"
    count = len(recent)
    often = f"it was restarted {'once' if count == 1 else f'{count} times'} within an hour"
    if count >= policy.restarts_per_hour:
        free = iso_time(sorted(recent)[count - policy.restarts_per_hour] + HOUR) if policy.restarts_per_hour else None
        after = f", so not again before {free}" if free else ""
        return f"{often}, which is all that servers_watchdog_restarts allows{after}"
    if recent and now < max(recent) + BACK_OFF_SECONDS * 2 ** (count - 1):
        return f"{often}, so not again before " + iso_time(max(recent) + BACK_OFF_SECONDS * 2 ** (count - 1))
    return None
