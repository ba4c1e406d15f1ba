# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module watchdog."""

from __future__ import annotations

from .._core.arguments import Arguments

MODES = ("off", "report", "restart")
ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "mode": {"type": "str", "choices": list(MODES), "required": True},
        "interval": {"type": "int", "default": 60},
        "timeout": {"type": "float", "default": 60.0},
        "restarts_per_hour": {"type": "int", "default": 3},
    },
    filled_in={"run_id": {"type": "str"}},
)
