# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The plan as a document: what server_plan hands to launch_configs, to the reports and to the handlers."""

from __future__ import annotations

import re

from .._core.documents import ABSOLUTE_PATH, NULL, Document, Fields, Map

ACTIONS = ("keep", "start", "restart", "stop")
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
    {"sandbox": _SANDBOX},
)
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
        {"users": [str], "ports": Map(int), "lost": Map(str)},
    ),
)
