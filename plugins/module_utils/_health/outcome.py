# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The result of waiting for one server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result so far of waiting for one server. seconds_to_ready counts from the start of its process."""

    name: str
    port: int
    tier: str | None
    pid: int | None
    state: str
    is_ready: bool = False
    is_settled: bool = False
    seconds_to_ready: float | None = None
    token_seconds: float | None = None
    tokens_per_second: float | None = None
    restarts: int = 0
    exit_code: int | None = None
    exit_text: str | None = None
    detail: str | None = None
    fix: str | None = None
    log_tail: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "log_tail": list(self.log_tail)}
