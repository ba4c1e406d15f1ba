# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends requests at a steady rate, however long answers take, and measures each from its sending to its last byte."""

from __future__ import annotations

import asyncio
import gc
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

KEY = "key-of-the-bench"
ANSWER_SECONDS = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass
class Sample:
    """Milliseconds of the requests that were answered with 200, and how many were not."""

    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0

    def percentile(self, percent: float) -> float:
        """Of the requests that were answered; infinite if there were none."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else math.inf


def message(port: int, body: bytes) -> bytes:
    """A request for a chat completion."""
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_open = True
        self._seen = bytearray()
        self._whole = -1
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, sent: bytes) -> asyncio.Future[int]:
        """Send a request, or the rest of one; the future has the status of its answer, 0 if there was none."""
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(sent)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if self._whole < 0:
            end = self._seen.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._seen[: end + 2])
            length = _LENGTH.search(head)
            self._whole = end + 4 + int(length[1]) if length else -1
            self.is_open = self.is_open and length is not None and not _CLOSES.search(head)
        if 0 <= self._whole <= len(self._seen):
            status = int(self._seen[9:12])
            self._seen, self._whole = bytearray(), -1
            self._resolve(status)

    def connection_lost(self, _error: Exception | None) -> None:
        self.is_open = False
        # An answer without a length ends with its connection.
        self._resolve(int(self._seen[9:12]) if self._seen[:5] == b"HTTP/" else 0)

    def _resolve(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


async def connect(port: int) -> Connection:
    _transport, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


class Client:
    """Requests over connections that are kept open."""

    def __init__(self, port: int, body: bytes) -> None:
        self._port, self._sent = port, message(port, body)
        self._idle: list[Connection] = []
        self.sample = Sample()

    async def ask(self) -> None:
        loop = asyncio.get_running_loop()
        status, began = 0, loop.time()
        # A server may close a connection that it has kept: that is seen only when it is used.
        for _attempt in range(2):
            kept = self._taken()
            try:
                began = loop.time()
                connection = kept or await connect(self._port)
                status = await asyncio.wait_for(connection.ask(self._sent), ANSWER_SECONDS)
            except (OSError, asyncio.TimeoutError):
                status = 0
                break
            if connection.is_open:
                self._idle.append(connection)
            if status or not kept:
                break
        if status == 200:
            self.sample.milliseconds.append((loop.time() - began) * 1000)
        else:
            self.sample.failed += 1

    def _taken(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    def close(self) -> None:
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.abort()


async def _segment(port: int, body: bytes, rate: float, seconds: float) -> Sample:
    loop = asyncio.get_running_loop()
    client = Client(port, body)
    asked = []
    began = loop.time()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(began + number / rate - loop.time())
        asked.append(loop.create_task(client.ask()))
    await asyncio.gather(*asked)
    client.close()
    return client.sample


def segment(port: int, body: bytes, rate: float, seconds: float) -> Sample:
    """Requests to a port at a rate for some seconds; returns once all are answered."""
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_segment(port, body, rate, seconds))
    finally:
        gc.enable()


async def hold(port: int, body: bytes, count: int, seconds: float) -> tuple[list[Connection], bytes]:
    """Open connections and send a request on each but for its last byte, which is returned; waits some seconds."""
    sent = message(port, body)
    connections = [await connect(port) for _ in range(count)]
    for connection in connections:
        connection.ask(sent[:-1])
    await asyncio.sleep(seconds)
    return connections, sent[-1:]


async def release(connections: Sequence[Connection], last: bytes) -> int:
    """Send the last byte of each request that is held; returns how many were answered with 200."""
    answers = [connection.ask(last) for connection in connections]
    done = await asyncio.wait_for(asyncio.gather(*answers), ANSWER_SECONDS)
    for connection in connections:
        if connection.transport is not None:
            connection.transport.abort()
    return sum(status == 200 for status in done)
