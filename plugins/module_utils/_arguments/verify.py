# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module verify."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "timeout": {"type": "float", "default": 60.0},
        "api_key": {"type": "str", "no_log": True},
        "request_from": {"type": "str", "choices": ["auto", "controller", "host"], "default": "auto"},
        "host": {"type": "str", "default": "127.0.0.1"},
        "port_range_start": {"type": "int", "default": 8080},
        "port_range_end": {"type": "int", "default": 8099},
    },
    filled_in={
        # Names of the servers that gave no answer, those of them that run and took the question, and those that gave
        # none before and do now.
        "failed": {"type": "list", "elements": "str", "default": []},
        "refused": {"type": "list", "elements": "str", "default": []},
        "answered": {"type": "list", "elements": "str", "default": []},
        # Tokens a second by name, of servers that the controller has asked.
        "speeds": {"type": "dict", "default": {}},
    },
)
