# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Get pieces from other hosts of a run, and from a mirror that knows Range."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from .._core.errors import MagiError
from .._core.exchange import request

HAVE_SECONDS = 5.0
# A piece may take this long, and longer the larger it is: what is slower than 64 KiB a second is another's turn.
PIECE_SECONDS, SLOWEST_BYTES = 60.0, 1 << 16
HAVE_LIMIT = 4 << 20
_HEADERS = 1 << 16
_BLOCK = 1 << 18
# What a peer or a mirror may raise by answering badly or not at all.
FAILURES = (OSError, http.client.HTTPException, ValueError)


class BusyError(Exception):
    """The other side sends as many pieces as it can."""


class MirrorError(MagiError):
    """A mirror that does not have a file, or does not know Range."""


def fetch_have(address: tuple[str, int], token: str) -> Any:
    """Name of a host of the run, and what it has, unchecked. Raises one of FAILURES."""
    status, body = request(address, "GET", "/have", seconds=HAVE_SECONDS, limit=HAVE_LIMIT, key=token)
    if status != 200:
        raise ValueError(f"it answered with status {status}")
    return json.loads(body)


def fetch_piece(address: tuple[str, int], token: str, file: int, number: int, length: int) -> bytes:
    """A piece from a host of the run, unchecked. Raises BusyError or one of FAILURES."""
    status, body = request(
        address,
        "GET",
        f"/piece/{file}/{number}",
        seconds=PIECE_SECONDS + length / SLOWEST_BYTES,
        limit=length + _HEADERS,
        key=token,
    )
    if status == 503:
        raise BusyError
    if status != 200:
        raise ValueError(f"it answered with status {status}")
    return body


def mirror_url(base: str, name: str) -> str:
    """The address of a file below a mirror's address."""
    return f"{base.rstrip('/')}/{urllib.parse.quote(name)}"


def fetch_range(url: str, start: int, length: int) -> bytes:
    """Part of a file from a mirror, unchecked. Raises MirrorError, or one of FAILURES."""
    deadline = time.monotonic() + PIECE_SECONDS + length / SLOWEST_BYTES
    asked = urllib.request.Request(
        url, headers={"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
    )
    found = bytearray()
    try:
        with urllib.request.build_opener().open(asked, timeout=30.0) as answer:
            if answer.status != 206:
                raise MirrorError(f"{url}: the mirror does not know Range, so no part of a file can be had from it.")
            while block := answer.read(min(_BLOCK, length + 1 - len(found))):
                found += block
                if len(found) > length or time.monotonic() > deadline:
                    raise ValueError("it sends more than was asked for, or too slowly")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 429 or error.code >= 500:
            # It may be able to later.
            raise ValueError(f"the mirror answered with status {error.code}") from None
        raise MirrorError(f"{url}: the mirror answered with status {error.code}.") from None
    return bytes(found)


def fetch_small(url: str, limit: int) -> bytes:
    """A small file from a mirror. Raises MirrorError, or one of FAILURES."""
    try:
        with urllib.request.build_opener().open(url, timeout=30.0) as answer:
            body: bytes = answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise MirrorError(f"{url}: the mirror answered with status {error.code}.") from None
    if len(body) > limit:
        raise MirrorError(f"{url} is longer than {limit} bytes.")
    return body
