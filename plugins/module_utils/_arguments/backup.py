# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module backup: the state on the host, folder and retention on the controller."""

from __future__ import annotations

from typing import Any

from .._archive.retention import Keep
from .._core.arguments import Arguments

# On the host.
PLACES: dict[str, Any] = {
    "registry_path": {"type": "path"},
    "api_key_file": {"type": "path", "no_log": False},
}
# On the controller.
KEEPING: dict[str, Any] = {
    "dir": {"type": "path"},
    "keys": {"type": "bool", "default": False, "no_log": False},
    "keep": {
        "type": "dict",
        "apply_defaults": True,
        "options": {
            "last": {"type": "int", "default": Keep.last},
            "daily": {"type": "int", "default": Keep.daily},
            "weekly": {"type": "int", "default": Keep.weekly},
            "monthly": {"type": "int", "default": Keep.monthly},
        },
    },
}
# The digest of the state that the newest backup has.
FILLED_IN: dict[str, Any] = {"known": {"type": "str"}}

ARGUMENTS = Arguments(
    {"state_dir": {"type": "path"}, **PLACES, **KEEPING, "console_database": {"type": "path"}},
    filled_in=FILLED_IN,
    rules={
        "required_one_of": [("state_dir", "console_database")],
        "mutually_exclusive": [("state_dir", "console_database")],
    },
)
