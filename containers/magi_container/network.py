# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small requests within the containers' network."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any


def accepts(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def own_address(peer: str) -> str:
    """The address at which a peer reaches this container. Raises OSError if the peer is not known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent.
        probe.connect((peer, 9))
        return str(probe.getsockname()[0])


def get(host: str, port: int, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """The status and the JSON of an answer, None where it has none; status 0 without an answer."""
    connection = http.client.HTTPConnection(host, port, timeout=4)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        body = answer.read(1024 * 1024)
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    with contextlib.suppress(ValueError):
        return answer.status, json.loads(body)
    return answer.status, None
