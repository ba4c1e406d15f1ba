# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a run reports while it is in progress: one document for each event, and what each type of event has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .._core.documents import NULL, NUMBER, Document, Fields, Map, check
from .._health.status import STATUS
from .._plan.document import PLAN
from .rollout_summary import ROLLOUT

_TEXT = (str, NULL)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_SECONDS = (*NUMBER, NULL)
_OF_SERVER = Fields(
    {"server": str, "port": (int, NULL), "seconds": _SECONDS, "reason": _TEXT, "fix": _TEXT},
)
_MODEL = Fields(
    {"id": str, "kind": str, "tier": _TEXT, "architecture": _TEXT, "path": str, "size_bytes": (int, NULL)},
)
# What `data` has, by the type of the event.
DATA: dict[str, Fields] = {
    "run_started": Fields(
        {"playbook": str, "profile": _TEXT, "check": bool, "limit": _TEXT, "controller": str, "user": str}
    ),
    "play_started": Fields({"name": str, "hosts": [str]}),
    "task_started": Fields({"name": str, "number": int}),
    "plan": Fields({"plan": PLAN.shape}),
    "status": Fields({"status": STATUS.shape}),
    "server_ready": _OF_SERVER,
    "server_failed": _OF_SERVER,
    "server_stopped": _OF_SERVER,
    "drained": Fields({"server": str, "seconds": NUMBER}),
    "lock_waited": Fields({"holder": str, "since": _TIME, "seconds": NUMBER, "has_lock": bool}),
    "line": Fields({"text": str}),
    "warning": Fields({"text": str}),
    "task_failed": Fields({"task": str, "msg": str, "fix": _TEXT}),
    "unreachable": Fields({"msg": str}),
    "registry": Fields(
        {"total": int, "tiers": Map(int), "rejected": [Fields({"path": str, "reason": str})], "models": [_MODEL]}
    ),
    "rollout": Fields({"rollout": ROLLOUT.shape}),
    "run_ended": Fields(
        {
            "rc": (int, NULL),
            "hosts": Map(Fields({"ok": int, "changed": int, "failed": int, "unreachable": int})),
        }
    ),
}
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
EVENT = Document(
    "event",
    1,
    Fields(
        {
            "collection_version": str,
            "at": _TIME,
            "run": RUN_ID,
            "seq": int,
            "type": re.compile("|".join(DATA)),
            "check": bool,
            "data": dict,
        },
        {"host": str},
    ),
)


def load_event(content: dict[str, Any]) -> dict[str, Any]:
    """Return an event in the current schema version, checked with its data. Raises DocumentError."""
    event = EVENT.load(content)
    check(event["data"], DATA[event["type"]], f"the data of {event['type']}")
    return event


def registry_data(registry: Mapping[str, Any]) -> dict[str, Any]:
    """The data of an event `registry`. The short registry of many models has no sizes."""
    models = [
        {**{key: model.get(key) for key in ("id", "kind", "tier", "architecture", "path", "size_bytes")}}
        for model in registry["models"]
    ]
    return {
        "total": int(registry.get("total", len(models))),
        "tiers": dict(Counter(str(model["tier"]) for model in models if model["tier"])),
        "rejected": [
            {"path": str(file["path"]), "reason": str(file["reason"])} for file in registry.get("rejected") or ()
        ],
        "models": models,
    }


def server_data(
    server: str,
    port: int | None = None,
    seconds: float | None = None,
    reason: str | None = None,
    fix: str | None = None,
) -> dict[str, Any]:
    """The data of an event about one server: how long it took, why, and what to do about it."""
    return {"server": server, "port": port, "seconds": seconds, "reason": reason, "fix": fix}
