# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module export, whose folder is the controller's."""

from __future__ import annotations

from .._core.arguments import Arguments
from .._export.formats import FORMATS
from .._export.workloads import ACCESS_MODES, DEFAULT_IMAGE

ARGUMENTS = Arguments(
    {
        "format": {"type": "str", "choices": list(FORMATS), "required": True},
        "folder": {"type": "path", "required": True},
        "image": {"type": "str", "default": DEFAULT_IMAGE},
        "binary": {"type": "str", "default": "llama-server"},
        "gateway_image": {"type": "str", "default": "haproxy:3.2"},
        "claim": {"type": "str", "default": "models"},
        "access_mode": {"type": "str", "choices": list(ACCESS_MODES), "default": ACCESS_MODES[0]},
        "secret": {"type": "str", "default": "llama-api-key"},
    }
)
