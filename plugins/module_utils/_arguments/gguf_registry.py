# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module gguf_registry."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "scan_paths": {"type": "list", "elements": "path", "default": ["/models"]},
        "registry_path": {"type": "path", "default": "/var/lib/magi-llama/registry.json"},
        "force": {"type": "bool", "default": False},
        "follow_links": {"type": "bool", "default": False},
        "fact": {"type": "str", "choices": ["auto", "full", "short"], "default": "auto"},
        "checksums": {"type": "bool", "default": False},
        "manifest": {"type": "dict"},
        "manifest_file": {"type": "path"},
        "manifest_public_key": {"type": "str", "no_log": False},
        "manifest_strict": {"type": "bool", "default": False},
        "time_limit": {"type": "float"},
        "state_dir": {"type": "path"},
        "resume": {"type": "str"},
    },
    filled_in={"run_id": {"type": "str"}},
    rules={"mutually_exclusive": [("manifest", "manifest_file")]},
)
