# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module server_log."""

from __future__ import annotations

from .._core.arguments import Arguments

MAX_LINES = 5000
ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "servers": {"type": "list", "elements": "str", "default": []},
        "lines": {"type": "int", "default": 100},
        "since": {"type": "str"},
    }
)
