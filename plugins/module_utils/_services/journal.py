# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The output of `journalctl -o json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .base import LogLine, logged_line
from .server_log import plain_lines


def since_start(output: str, shown: Mapping[str, str]) -> list[str]:
    """Return the messages in the output of `journalctl -o json` since a unit's last deliberate start.

    shown are its properties. systemd gives each process of a unit another InvocationID, also after a crash; without one
    all messages are returned.
    """
    entries = _journal_entries(output)
    current = shown.get("InvocationID")
    if not current:
        return [message for _entry, message in entries]
    logged = dict.fromkeys(entry.get("_SYSTEMD_INVOCATION_ID") for entry, _message in entries)
    earlier = [invocation for invocation in logged if invocation != current]
    restarts = int(shown.get("NRestarts") or 0)
    wanted = {current, *(earlier[-restarts:] if restarts else ())}
    return [message for entry, message in entries if entry.get("_SYSTEMD_INVOCATION_ID") in wanted]


def parse_journal(output: str, pids: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the messages of these processes in the output of `journalctl -o json`, by the names of their servers."""
    logs: dict[str, list[str]] = {name: [] for name in pids}
    for entry, message in _journal_entries(output):
        name = str(entry.get("SYSLOG_IDENTIFIER"))
        if name in pids and entry.get("_PID") == str(pids[name]):
            logs[name].append(message)
    return logs


def _journal_entries(output: str) -> list[tuple[dict[str, Any], str]]:
    """Return the entries in the output of `journalctl -o json`, each with its message."""
    found = []
    for line in output.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        message = entry.get("MESSAGE") if isinstance(entry, dict) else None
        if isinstance(message, list):
            # The bytes of a message that is not UTF-8 or has control characters.
            message = bytes(byte for byte in message if byte in range(256)).decode("utf-8", "replace")
        if isinstance(message, str):
            found.append((entry, message))
    return found


def journal_lines(output: str, name: str, count: int) -> list[LogLine]:
    """Return the last lines of a unit's log in the output of `journalctl -o json`; those of systemd say so."""
    found: list[LogLine] = []
    for entry, message in _journal_entries(output):
        who = str(entry.get("SYSLOG_IDENTIFIER") or name)
        begins = "" if who == name else f"{who}: "
        found += [logged_line(f"{begins}{line}", _moment(entry)) for line in plain_lines(message.split("\n")) if line]
    return found[-count:]


def _moment(entry: Mapping[str, Any]) -> float | None:
    """When an entry was logged, in seconds since the epoch; None where it does not say it."""
    try:
        return int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    except (KeyError, ValueError, TypeError):
        return None
