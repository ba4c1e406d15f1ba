# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module restore: those of backup, and which one."""

from __future__ import annotations

from .._core.arguments import Arguments
from . import backup

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        **backup.PLACES,
        **backup.KEEPING,
        "at": {"type": "str", "required": True},
    },
    filled_in={
        "run_id": {"type": "str", "required": True},
        "files": {
            "type": "list",
            "elements": "dict",
            "required": True,
            # Not for the whole list: no_log hides every part of it wherever it occurs in the result.
            "options": {"name": {"type": "str"}, "data": {"type": "str", "no_log": True}},
        },
    },
)
