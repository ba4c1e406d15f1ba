# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module gateway_state."""

from __future__ import annotations

from .._core.arguments import Arguments
from .._services.table import MANAGERS

# What gateway.json keeps, so that a run that only changes servers needs none of it.
SETTINGS = {
    "host": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int", "default": 8070},
    "tls_port": {"type": "int", "default": 8443},
    "certificate": {"type": "path"},
    "allow_plain": {"type": "bool", "default": False},
    "metrics_host": {"type": "str", "default": "127.0.0.1"},
    "metrics_port": {"type": "int", "default": 8071},
    "max_body": {"type": "int", "default": 256 * 1024 * 1024},
    "queue_timeout": {"type": "int", "default": 30},
    "answer_timeout": {"type": "int", "default": 600},
    "hang_timeout": {"type": "int", "default": 0},
    "max_queue": {"type": "int", "default": 64},
    "rate_per_minute": {"type": "int", "default": 0},
    "count_tokens": {"type": "bool", "default": False},
    "models": {"type": "dict", "default": {}},
    "stickiness": {"type": "str", "default": ""},
    "max_connections": {"type": "int", "default": 2000},
    "aliases": {"type": "dict", "default": {}},
    "families": {"type": "bool", "default": True},
    "console_url": {"type": "str", "default": ""},
    "console_token_file": {"type": "path", "no_log": False},
}

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "prepared", "updated", "read", "absent"], "default": "present"},
        "part": {"type": "str", "choices": ["all", "begin", "end"], "default": "all"},
        "service_manager": {"type": "str", "choices": list(MANAGERS)},
        "supervisord_path": {"type": "path"},
        "program": {"type": "path"},
        "user": {"type": "str"},
        "settings": {"type": "dict", "options": SETTINGS},
        "api_keys": {"type": "list", "elements": "dict", "no_log": True},
        "ready_timeout": {"type": "float", "default": 10.0},
    },
    filled_in={
        # By host: what gateway_members found there, null for a host without servers.
        "hosts": {"type": "dict", "default": {}},
        # By host, where that was done without its lock: how many seconds ago.
        "ages": {"type": "dict", "default": {}},
        # As JSON, since no_log hides every part of a list or mapping wherever it occurs in the result.
        "keys": {"type": "str", "no_log": True},
        "clients": {"type": "str", "no_log": True},
        "inventory": {"type": "list", "elements": "str"},
    },
)
