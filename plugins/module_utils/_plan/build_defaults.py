# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Flags that are rendered where the build has them: for a quick stop, and for a log with the memory breakdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core.stopping import shortest_stop_timeout, sse_ping_seconds
from .._runtime.render_flags import has_flag
from .inputs import PlanError

_PING = "sse_ping_interval"


def stop_defaults(parameters: Mapping[str, Any], flags: Mapping[str, Any], stop_timeout: int) -> dict[str, Any]:
    """Return the interval of pings in seconds, if the build has it and the parameters do not set it.

    Raises PlanError if the one that they set makes a clean stop longer than the wait before the second SIGTERM.
    """
    if _PING not in parameters:
        return {_PING: sse_ping_seconds(stop_timeout)} if has_flag(_PING, flags) else {}
    try:
        seconds = int(parameters[_PING])
    except (TypeError, ValueError):
        # Rendering reports values of the wrong type.
        return {}
    if seconds > 0 and stop_timeout < shortest_stop_timeout(seconds):
        raise PlanError(
            f"{_PING} is {seconds}: a stop with an open stream takes that long, and servers_stop_timeout "
            f"{stop_timeout} ends it before. Set servers_stop_timeout to {shortest_stop_timeout(seconds)} or more, "
            f"or lower {_PING}."
        )
    return {}


def log_defaults(parameters: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flag for a log in JSON lines, which has the server's own memory breakdown."""
    return {"log_jsonl": True} if "log_jsonl" not in parameters and has_flag("log_jsonl", flags) else {}
