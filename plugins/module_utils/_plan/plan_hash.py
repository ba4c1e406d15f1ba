# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The hash of a plan: one digest of all that a run would do, and of what it decided that by.

Two plans have one hash if applying either does the same to hosts on which the same runs. What changes by itself is left
out: times, free memory, estimates, process ids, and sentences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._core.digests import digest_of
from .._core.text import visible_value

# What people compare and type; any longer beginning is taken too.
SHOWN_DIGITS = 16
# Of a plan and of its servers, what is left out.
_NOT_HASHED = frozenset({"hash", "memory", "peak", "away", "downtime_seconds", "warnings", "lost"})
_NOT_HASHED_OF_SERVER = frozenset({"memory", "downtime_seconds", "reason"})
_GIVEN = re.compile(rf"[0-9a-f]{{{SHOWN_DIGITS},64}}")


def host_hash(plan: Mapping[str, Any]) -> str:
    """Return the hash of a host's plan, with its launch configs in "configs"; the same for the document as written."""
    return digest_of(_basis(visible_value(plan)))


def fleet_hash(hosts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the hash of a run by the parts of its hosts; None without hosts, or where one has failed or no plan."""
    if not hosts or any("error" in host or "hash" not in host for host in hosts.values()):
        return None
    return digest_of({name: host["hash"] for name, host in hosts.items()})


def given_hash(value: Any) -> str | None:
    """Return the hash, or its beginning, that a value is; None for something else, such as a file's name."""
    text = str(value).strip().lower()
    return text if _GIVEN.fullmatch(text) else None


def _basis(plan: Mapping[str, Any]) -> dict[str, Any]:
    servers = sorted(plan["servers"], key=lambda server: str(server["name"]))
    waves = [{key: value for key, value in wave.items() if key != "away"} for wave in plan.get("waves", ())]
    return {
        **{key: value for key, value in plan.items() if key not in _NOT_HASHED},
        "servers": [
            {key: value for key, value in server.items() if key not in _NOT_HASHED_OF_SERVER} for server in servers
        ],
        "waves": waves,
        "lost": sorted(plan.get("lost", ())),
    }
