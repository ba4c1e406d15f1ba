# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Where a server's own process listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of a server behind a socket, which has the server's own address and port.
INNER_HOST = "127.0.0.1"


def listening_place(server: Mapping[str, Any]) -> tuple[str, int]:
    """Return address and port at which a server's process listens, by its record; without a socket, the server's."""
    part = server.get("on_demand")
    return (str(server["host"]), int(server["port"])) if part is None else (INNER_HOST, int(part["port"]))
