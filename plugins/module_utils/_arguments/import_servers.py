# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module import_servers, whose paths are the controller's."""

from __future__ import annotations

from .._core.arguments import Arguments

FORMATS = ("auto", "llama-swap", "models-preset", "ollama", "lm-studio", "command")
ARGUMENTS = Arguments(
    {
        "source": {"type": "path"},
        "command": {"type": "str"},
        "format": {"type": "str", "choices": list(FORMATS), "default": FORMATS[0]},
        "name": {"type": "str", "default": "imported"},
        "folder": {"type": "path"},
    }
)
