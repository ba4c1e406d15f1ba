# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module model_fetch."""

from __future__ import annotations

from .._core.arguments import Arguments

STATES = ["inspected", "listed", "started", "fetched", "stopped"]

ARGUMENTS = Arguments(
    {
        "state": {"type": "str", "choices": STATES, "required": True},
        "dest": {"type": "path", "required": True},
        "models": {"type": "list", "elements": "str", "default": []},
        "profile": {"type": "dict"},
        "manifest_file": {"type": "str", "default": ""},
        "manifest_public_key": {"type": "str", "default": "", "no_log": False},
        "source": {"type": "str", "default": ""},
        "address": {"type": "str"},
        "port_range_start": {"type": "int", "default": 8190},
        "port_range_end": {"type": "int", "default": 8199},
        "rate_up": {"type": "str", "default": ""},
        "rate_down": {"type": "str", "default": ""},
        "reserve": {"type": "str", "default": "1GiB"},
        "stall_seconds": {"type": "int", "default": 300},
    },
    filled_in={
        "run_id": {"type": "str"},
        # Of the files that are inspected and listed: name, size, sha256, and wanted.
        "files": {"type": "list", "elements": "dict", "default": []},
        # As JSON, since no_log hides every part of a mapping wherever it occurs in the result.
        "job": {"type": "str", "no_log": True},
        "slice": {"type": "float", "default": 0.0},
        # Files that have come through the connection: the path, and of each piece in it the file, number and length.
        "arrived": {"type": "list", "elements": "dict", "default": []},
    },
)
