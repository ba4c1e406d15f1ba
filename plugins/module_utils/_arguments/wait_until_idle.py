# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module wait_until_idle."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "servers": {"type": "list", "elements": "str", "required": True},
        "timeout": {"type": "float", "default": 60.0},
        "preload": {"type": "list", "elements": "str", "default": []},
    },
    filled_in={
        "run_id": {"type": "str"},
        # Seconds after which to return even when not all servers are settled, and those waited in earlier calls.
        "slice": {"type": "float"},
        "elapsed": {"type": "float", "default": 0.0},
    },
)
