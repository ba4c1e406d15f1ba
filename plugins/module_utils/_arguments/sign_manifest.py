# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module sign_manifest, whose paths are the controller's."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "path": {"type": "path", "required": True},
        "secret_key": {"type": "path", "required": True},
        "password": {"type": "str", "no_log": True},
        "public_key": {"type": "str"},
    }
)
