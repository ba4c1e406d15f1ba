# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The plan as a document: what server_plan hands to launch_configs, to the reports and to the handlers."""

from __future__ import annotations

import re

from .._core.documents import ABSOLUTE_PATH, NAME, NULL, NUMBER, Document, Fields, Map

ACTIONS = ("keep", "start", "restart", "stop")
# What a plan has of a server's change, and the record of what is deployed has not.
OF_CHANGE = frozenset({"action", "reason", "change", "downtime_seconds", "argv_diff"})
DIGEST = re.compile("[0-9a-f]{64}")
# What a launch config shows of folders that it hides; empty parts are missing.
_SANDBOX = Fields(
    {},
    {
        "shows": [Fields({"path": ABSOLUTE_PATH, "source": ABSOLUTE_PATH, "writable": bool})],
        "opens": [str],
        "folders": [ABSOLUTE_PATH],
        "closed": [ABSOLUTE_PATH],
        "program": ABSOLUTE_PATH,
    },
)
# How a server is started by a request: after how many seconds without one it is stopped (null for never), whether it
# makes room for no other one, its own port behind that of the socket, and the programs.
ON_DEMAND = Fields(
    {"idle_stop": (int, NULL), "pinned": bool, "port": int, "python": ABSOLUTE_PATH, "proxy": ABSOLUTE_PATH}
)
# What is looked at before such a start: bytes that all servers may have, and those of each GPU.
ON_DEMAND_LIMITS = Fields({"budget_bytes": (int, NULL), "gpu_bytes": [int], "overcommit": bool})
# A server to be stopped may be known by its process only. What is launched is checked again where it is recorded.
_SERVER = Fields(
    {
        "name": str,
        "model_id": str,
        "port": (int, NULL),
        "argv": [str],
        "action": re.compile("|".join(ACTIONS)),
        "reason": str,
    },
    {
        "sandbox": _SANDBOX,
        "on_demand": ON_DEMAND,
        # How a server that is restarted is kept from being missed, and whose place a server takes meanwhile.
        "change": re.compile("surge|swap|away"),
        "stands_in_for": NAME,
        # The seconds for which its requests find no server, and what changes on its command line.
        "downtime_seconds": NUMBER,
        "argv_diff": [str],
    },
)
# The steps of a change without downtime: what is drained, done, and ready at the end; models that other hosts have to
# serve meanwhile, and the seconds for which servers are missed.
WAVES = [
    Fields(
        {
            "drain": [NAME],
            "actions": Map(re.compile("start|restart|stop"), NAME),
            "ready": [NAME],
            "needs": [str],
            "leaves": [str],
            "away": Map(NUMBER, NAME),
        },
        # Models of new servers by name, and models that the host serves no more afterwards.
        {"new": Map(str, NAME), "drops": [str]},
    )
]
_PEAK = Fields({"ram_bytes": int, "vram_bytes": int})
PLAN = Document(
    "plan",
    1,
    Fields(
        {
            "collection_version": str,
            "profile": (str, NULL),
            "start": (dict, NULL),
            "servers": [_SERVER],
            "memory": dict,
            "warnings": [str],
        },
        {
            "users": [str],
            "ports": Map(int),
            "lost": Map(str),
            "on_demand": ON_DEMAND_LIMITS,
            "waves": WAVES,
            "peak": _PEAK,
            "away": Map(NUMBER),
            "downtime_seconds": NUMBER,
            # In the result of plan.yml: digests of the launch configs by path, and of all that the plan would do.
            "configs": Map(DIGEST, ABSOLUTE_PATH),
            "hash": DIGEST,
        },
    ),
)
