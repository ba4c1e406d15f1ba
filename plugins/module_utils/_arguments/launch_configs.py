# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module launch_configs."""

from __future__ import annotations

from .._core.arguments import Arguments
from .._services.table import MANAGERS

ARGUMENTS = Arguments(
    {
        "service_manager": {"type": "str", "choices": list(MANAGERS), "required": True},
        "state_dir": {"type": "path", "required": True},
        "plan": {"type": "dict", "required": True},
        "deployed": {"type": "dict"},
        "template": {"type": "str"},
        "common_template": {"type": "str"},
        "allow_addresses": {"type": "list", "elements": "str", "default": []},
    },
    filled_in={
        "run_id": {"type": "str"},
        # The rendered launch configs.
        "configs": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "path": {"type": "path", "required": True},
                "content": {"type": "str", "required": True},
                "mode": {"type": "str", "default": "0644"},
            },
        },
    },
)
