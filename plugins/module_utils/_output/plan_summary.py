# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The end of a plan: what a run of site would do on all hosts, and the hash by which it does exactly that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .._core.stand_ins import without_stand_ins
from .._plan.document import ACTIONS
from .._plan.plan_hash import SHOWN_DIGITS
from .report import format_seconds

MAX_NAMED = 5


def plan_summary_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the last lines of plan.yml by its document."""
    hosts = document["hosts"]
    servers = [server for host in hosts.values() for server in without_stand_ins(host.get("servers", ()))]
    counts = Counter(str(server["action"]) for server in servers)
    texts = [f"{counts[action]} to {action}" for action in (*ACTIONS[1:], ACTIONS[0]) if counts[action]]
    seconds = sum(host.get("downtime_seconds", 0) for host in hosts.values())
    texts += [f"{format_seconds(seconds)} of downtime"] if seconds else []
    count = f"{len(hosts)} host{'s' * (len(hosts) != 1)}"
    return [f"plan  {count}: {', '.join(texts) or 'nothing to do'}", _hash_line(document)]


def _hash_line(document: Mapping[str, Any]) -> str:
    if document["hash"]:
        shown = document["hash"][:SHOWN_DIGITS]
        return f"hash  {shown} (site.yml -e apply={shown} does exactly this, or nothing)"
    missing = [name for name, host in document["hosts"].items() if "error" in host or "hash" not in host]
    named = ", ".join(missing[:MAX_NAMED]) + (f" and {len(missing) - MAX_NAMED} more" * (len(missing) > MAX_NAMED))
    return f"hash  none, as there is no plan for {named}: fix that, or leave them out with --limit"
