# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The log of a llama-server with --log-jsonl: each line is a JSON object, of type "log" unless it is data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

# A line that is longer is not parsed.
MAX_LINE_BYTES = 65536


def parsed(line: str) -> dict[str, Any] | None:
    """Return the object of a line in JSON; None for any other line."""
    if not line.startswith('{"type":') or len(line) > MAX_LINE_BYTES:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def plain_lines(lines: Iterable[str]) -> list[str]:
    """Return the log as llama-server prints it without --log-jsonl: the messages, without data."""
    plain: list[str] = []
    for line in lines:
        found = parsed(line)
        if found is None:
            plain.append(line)
        elif found.get("type") == "log" and isinstance(found.get("msg"), str):
            plain += [part for part in found["msg"].split("\n") if part]
    return plain


def lines_since(lines: Sequence[str], moment: float, written: float) -> list[str]:
    """Return the lines that may have been logged since a moment. written is when the last one was logged.

    A line in JSON has its microseconds since the start of its process, and no date: what is known is when it was
    logged at the latest. A process before the last one has ended when the next one began, if not long before.
    """
    latest, clock = written, None
    for place in range(len(lines) - 1, -1, -1):
        found = parsed(lines[place]) or {}
        time = found.get("time") if found.get("type") == "log" else None
        if not isinstance(time, int):
            continue
        if clock is not None:
            # Within a process its clock does not go back: a later line with less is of the next process.
            latest -= (clock - time if time <= clock else clock) / 1e6
        clock = time
        if latest < moment:
            return list(lines[place + 1 :])
    return list(lines) if latest >= moment else []
