# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module host_facts."""

from __future__ import annotations

from .._core.arguments import Arguments
from .._services.table import CHOICES

ARGUMENTS = Arguments(
    {
        "service_manager": {"type": "str", "choices": list(CHOICES), "default": "auto"},
        "user": {"type": "str", "required": True},
        "state_dir": {"type": "path", "required": True},
        "supervisord_path": {"type": "path"},
    }
)
