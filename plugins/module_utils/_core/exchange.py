# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Send one HTTP request with one deadline and one size limit over the whole exchange, headers included."""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from typing import Any


class TooLongError(ValueError):
    """An answer longer than its limit; the rest is not read."""


class _Bounded(io.RawIOBase):
    """Reads a socket until the deadline, and up to a number of bytes."""

    def __init__(self, connection: socket.socket, deadline: float, limit: int) -> None:
        super().__init__()
        self._connection, self._deadline = connection, deadline
        self._limit = self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise TooLongError(f"the answer is longer than {self._limit} bytes")
        self._connection.settimeout(_seconds_left(self._deadline))
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Reader:
    """What http.client reads an answer from, in place of a socket."""

    def __init__(self, raw: _Bounded) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._raw)


def authority(host: str, port: int) -> str:
    """Return host and port as a URL and the header Host have them: an IPv6 address is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout("timed out")
    return left


def request(
    address: tuple[str, int],
    method: str,
    path: str,
    *,
    seconds: float,
    limit: int,
    body: Any = None,
    key: str | None = None,
) -> tuple[int, bytes]:
    """Send a request; returns the status code and the body. body is sent as JSON, key as a bearer token.

    seconds is for connecting, sending and reading together; limit counts the bytes of headers and body. Raises OSError
    (socket.timeout after the deadline), http.client.HTTPException, TooLongError, or ValueError for an invalid key.
    """
    deadline = time.monotonic() + seconds
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {authority(*address)}",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    if key:
        if not key.isprintable():
            raise ValueError("the API key has characters that a header cannot have")
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    message = "\r\n".join([*lines, "", ""]).encode() + content
    with socket.create_connection(address, timeout=_seconds_left(deadline)) as connection:
        connection.settimeout(_seconds_left(deadline))
        connection.sendall(message)
        # A fake of a socket, with the one method that the response calls.
        reader: Any = _Reader(_Bounded(connection, deadline, limit))
        response = http.client.HTTPResponse(reader, method=method)
        try:
            response.begin()
            return response.status, response.read()
        finally:
            response.close()
