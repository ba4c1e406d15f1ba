# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The arguments of the module gateway_verify."""

from __future__ import annotations

from .._core.arguments import Arguments

ARGUMENTS = Arguments(
    {
        "state_dir": {"type": "path", "required": True},
        "name": {"type": "str", "required": True},
        "host": {"type": "str", "default": "127.0.0.1"},
        "port": {"type": "int", "required": True},
        "tls": {"type": "bool", "default": False},
        "url": {"type": "str"},
        "ca_file": {"type": "str"},
        "api_key": {"type": "str", "no_log": True},
        "timeout": {"type": "float", "default": 60.0},
        "request_from": {"type": "str", "choices": ["auto", "controller", "host"], "default": "auto"},
    },
    # Whether the host is to ask; otherwise it only lists the models.
    filled_in={"asks": {"type": "bool", "default": False}},
)
