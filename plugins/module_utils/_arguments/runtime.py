# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module runtime."""

from __future__ import annotations

from .._core.arguments import Arguments
from .._runtime.install import METHODS

ARGUMENTS = Arguments(
    {
        "method": {
            "type": "str",
            "choices": ["auto", *METHODS],
            "default": "auto",
        },
        "path": {"type": "path", "default": "/usr/local/bin/llama-server"},
        "prefix": {"type": "path", "default": "/opt/magi-llama/runtime"},
        "portable_suite": {"type": "str", "default": "forky"},
        "portable_mirror": {"type": "str"},
        "release_url": {"type": "str"},
        "release_sha256": {"type": "str"},
        "image": {"type": "str"},
        "image_archive": {"type": "path"},
        "image_devices": {"type": "list", "elements": "str"},
        "upgrade": {"type": "bool", "default": False},
        "stage": {"type": "bool", "default": False},
        "install_if_missing": {"type": "bool", "default": True},
        "cache_path": {"type": "path"},
        "user": {"type": "str"},
        "binary_owner": {"type": "str"},
        "state_dir": {"type": "path"},
    },
    filled_in={"run_id": {"type": "str"}},
    rules={"required_by": {"release_url": ["release_sha256"]}},
)
