# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module run_lock, and those of every module that takes the lock (doc_fragments/lock.py)."""

from __future__ import annotations

from typing import Any

from .._core.arguments import Arguments
from .._core.run_lock import LEASE_SECONDS

WAITING: dict[str, Any] = {"wait": {"type": "float", "default": 300.0}, "take_over": {"type": "bool", "default": False}}
# This run, and the id of a run that is known to have ended.
FILLED_IN: dict[str, Any] = {"run": {"type": "dict", "required": True}, "dead": {"type": "str"}}

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["held", "renewed", "released"], "default": "held"},
        "create": {"type": "bool", "default": True},
        **WAITING,
        "lease": {"type": "float", "default": LEASE_SECONDS},
    },
    filled_in=FILLED_IN,
)
