# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module golden_prompts, whose path is the controller's."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "path": {"type": "path"},
        "timeout": {"type": "float", "default": 60.0},
        "min_tokens_per_second": {"type": "float", "no_log": False},
        "max_slowdown": {"type": "float"},
        "only_measure": {"type": "bool", "default": False},
    },
    filled_in={
        # The prompts of the file, as _health/prompts.py has them.
        "prompts": {"type": "list", "elements": "dict", "default": []},
    },
)
