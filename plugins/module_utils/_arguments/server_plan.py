# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module server_plan."""

from __future__ import annotations

from .._core.arguments import Arguments
from .._services.table import MANAGERS
from .downtime import OPTIONS

ARGUMENTS = Arguments(
    {
        "registry_path": {"type": "path", "required": True},
        "registry": {"type": "dict"},
        "profile": {"type": "dict", "required": True},
        "runtime": {"type": "dict", "required": True},
        "state_dir": {"type": "path", "required": True},
        "service_manager": {"type": "str", "choices": list(MANAGERS), "required": True},
        "port_range_start": {"type": "int", "default": 8080},
        "port_range_end": {"type": "int", "default": 8099},
        "host": {"type": "str", "default": "127.0.0.1"},
        "api_key_file": {"type": "path", "no_log": False},
        "allow_powerful": {"type": "bool", "default": False},
        "stop_timeout": {"type": "int", "default": 30},
        "memory_overcommit": {"type": "bool", "default": False},
        "strict": {"type": "bool", "default": False},
        "prune": {"type": "bool", "default": False},
        "require_gpu": {"type": "str", "choices": ["auto", "true", "false"], "default": "auto"},
        "move_on_conflict": {"type": "bool", "default": False},
        "ports": {"type": "dict", "default": {}},
        "cpu_expected_busy": {"type": "int"},
        "numa_mask": {"type": "str", "default": ""},
        "restart": {"type": "str", "choices": ["auto", "never"], "default": "never"},
        "restart_triggers": {"type": "dict", "default": {}},
        "candidate": {"type": "path"},
        "stray_variables": {"type": "list", "elements": "str", "default": []},
        **OPTIONS,
    },
    # Ids of models that other hosts of the run have, and of those that only the manifest has.
    filled_in={
        "known_elsewhere": {"type": "list", "elements": "str", "default": []},
        "known_from_manifest": {"type": "list", "elements": "str", "default": []},
    },
)
