# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module gateway_members."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "address": {"type": "str", "required": True},
        "host": {"type": "str", "default": "127.0.0.1"},
        "port_range_start": {"type": "int", "default": 8080},
        "port_range_end": {"type": "int", "default": 8099},
        "draining": {"type": "list", "elements": "str", "default": []},
        "away_seconds": {"type": "dict", "default": {}},
        "leaving": {"type": "list", "elements": "str"},
    },
    filled_in={"run_id": {"type": "str"}},
)
