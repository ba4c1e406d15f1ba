# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module rollout, whose path is the controller's."""

from __future__ import annotations

from .._core.arguments import Arguments

STEPS = ("begin", "gate", "update", "updated", "failed", "summary")
ARGUMENTS = Arguments(
    {
        "step": {"type": "str", "choices": list(STEPS), "required": True},
        "health": {"type": "dict", "default": {}},
        "verified": {"type": "dict", "default": {}},
        "prompts": {"type": "dict", "default": {}},
        "task": {"type": "str", "default": ""},
        "error": {"type": "str", "default": ""},
        "unreachable": {"type": "bool", "default": False},
        "max_unreachable": {"type": "int", "default": 0},
        "touched": {"type": "bool", "default": False},
        "format": {"type": "str", "choices": ["table", "json"], "default": "table"},
        "path": {"type": "path"},
    }
)
