# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module report."""

from __future__ import annotations

from .._core.arguments import Arguments

STEPS = (
    *("runtime", "discovery", "registry", "profile"),
    *("enabled", "launch", "health", "summary", "status", "text"),
)
ARGUMENTS = Arguments(
    {
        "step": {"type": "list", "elements": "str", "choices": list(STEPS), "required": True},
        "tried": {"type": "list", "elements": "dict", "default": []},
        "health": {"type": "dict"},
        "status": {"type": "dict"},
        "changes": {"type": "dict", "default": {}},
        "warnings": {"type": "list", "elements": "str", "default": []},
        "text": {"type": "str"},
    }
)
