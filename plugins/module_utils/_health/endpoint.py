# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a client has to know of a server, by its record or plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core.argv import flag_value
from .._core.documents import NULL

ENDPOINT = {
    "kind": str,
    "bind_address": (str, NULL),
    "context_size": (int, NULL),
    "needs_api_key": bool,
    "has_tls": bool,
    "profile": (str, NULL),
    "build": (int, NULL),
}


def endpoint(server: Mapping[str, Any], profile: str | None) -> dict[str, Any]:
    """The keys of ENDPOINT. context_size is in tokens, for one request; None where it is unknown, as of old records."""
    argv = server.get("argv") or []
    return {
        "kind": str(server.get("kind") or "model"),
        "bind_address": server.get("host") or flag_value(argv, "--host"),
        "context_size": (server.get("memory") or {}).get("slot_context"),
        "needs_api_key": bool(server.get("api_key_file")) or "--api-key-file" in argv,
        "has_tls": "--ssl-key-file" in argv,
        "profile": profile,
        "build": server.get("build"),
    }
