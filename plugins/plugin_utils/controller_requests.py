# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""One HTTP request of the controller with httpx, with one size limit; the caller has the deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 2**20


@dataclass(frozen=True)
class Response:
    """An answer as text, with its headers by name, whose case does not matter."""

    status: int
    text: str
    headers: Any


async def exchange(client: Any, url: str, body: Any, key: str | None) -> Response:
    """Post a body as JSON, with the key as a bearer token. Raises ValueError for an answer above MAX_ANSWER_BYTES."""
    headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
    async with client.stream("POST", url, json=body, headers=headers) as response:
        found = bytearray()
        async for part in response.aiter_raw():
            found += part
            if len(found) > MAX_ANSWER_BYTES:
                raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        return Response(response.status_code, found.decode("utf-8", "replace"), response.headers)
