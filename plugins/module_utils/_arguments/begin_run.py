# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module begin_run: those of host_facts, what a launch needs, and the wait for the lock."""

from __future__ import annotations

from .._core.arguments import Arguments
from . import backup, host_facts
from .run_lock import FILLED_IN, WAITING
from .watchdog import MODES

ARGUMENTS = Arguments(
    {
        **host_facts.ARGUMENTS.options,
        "api_key_file": {"type": "path", "no_log": False},
        "api_keys": {"type": "list", "elements": "str", "default": [], "no_log": True},
        "user_groups": {"type": "list", "elements": "str", "default": []},
        "allow_root": {"type": "bool", "default": False},
        "watchdog": {"type": "str", "choices": list(MODES), "default": "off"},
        "validate_launch": {"type": "bool", "default": False},
        **WAITING,
        # The options of the module backup, for its places on the host and its folder on the controller.
        "backup": {"type": "dict"},
    },
    filled_in={**FILLED_IN, **backup.FILLED_IN},
)
