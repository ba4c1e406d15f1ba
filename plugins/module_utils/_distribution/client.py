# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Get pieces from other hosts of a run, and from a mirror that knows Range."""

from __future__ import annotations

import http.client
import io
import json
import socket
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
SMALL_SECONDS = 300.0
# Without a byte from a mirror.
SILENCE_SECONDS = 30.0
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


class _Timed(io.RawIOBase):
    """Reads a connection until a deadline: a time-out of the socket begins again with each byte."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        super().__init__()
        self._connection, self._deadline = connection, deadline
        # While this is open the connection is too, although urllib closes it once the headers are there.
        self._raw = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("timed out")
        self._connection.settimeout(min(left, SILENCE_SECONDS))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Source:
    """What http.client reads an answer from, in place of a socket."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._raw)


def _opened(asked: urllib.request.Request, seconds: float) -> Any:
    """The answer to a request, whose headers and content have to be there within seconds. Raises one of FAILURES."""
    deadline = time.monotonic() + seconds

    def response(connection: socket.socket, *arguments: Any, **options: Any) -> http.client.HTTPResponse:
        source: Any = _Source(_Timed(connection, deadline))
        return http.client.HTTPResponse(source, *arguments, **options)

    class Timed(urllib.request.AbstractHTTPHandler):
        def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
            def connection(*arguments: Any, **more: Any) -> Any:
                made = http_class(*arguments, **more)
                made.response_class = response
                return made

            return super().do_open(connection, req, **options)

    class Http(Timed, urllib.request.HTTPHandler):
        """Where a mirror begins with http://, a proxy's too."""

    class Https(Timed, urllib.request.HTTPSHandler):
        """Where it begins with https://."""

    return urllib.request.build_opener(Http, Https).open(asked, timeout=SILENCE_SECONDS)


def mirror_url(base: str, name: str) -> str:
    """The address of a file below a mirror's address."""
    return f"{base.rstrip('/')}/{urllib.parse.quote(name)}"


def fetch_range(url: str, start: int, length: int) -> bytes:
    """Part of a file from a mirror, unchecked. Raises MirrorError, or one of FAILURES."""
    asked = urllib.request.Request(
        url, headers={"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
    )
    found = bytearray()
    try:
        with _opened(asked, PIECE_SECONDS + length / SLOWEST_BYTES) as answer:
            if answer.status != 206:
                raise MirrorError(f"{url}: the mirror does not know Range, so no part of a file can be had from it.")
            while block := answer.read(min(_BLOCK, length + 1 - len(found))):
                found += block
                if len(found) > length:
                    raise ValueError("it sends more than was asked for")
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
        with _opened(urllib.request.Request(url), SMALL_SECONDS) as answer:
            body: bytes = answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise MirrorError(f"{url}: the mirror answered with status {error.code}.") from None
    if len(body) > limit:
        raise MirrorError(f"{url} is longer than {limit} bytes.")
    return body
