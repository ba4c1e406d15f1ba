# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module teardown."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "registry_path": {"type": "path", "required": True},
        "runtime_prefix": {"type": "path"},
        "runtime_cache_path": {"type": "path"},
        "user": {"type": "str"},
        "stop_timeout": {"type": "float", "default": 30.0},
    },
    filled_in={"run_id": {"type": "str"}},
)
