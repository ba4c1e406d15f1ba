# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Spread many small pieces of work over all cores, if there is enough work to make processes worthwhile.

Plain fork and pipes: the standard pools need semaphores in /dev/shm, which a bare node may not have, and threads do
not speed up pure Python.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Seconds of work in this process before others are started: starting them takes about 20 ms.
SERIAL_SECONDS = 0.08
MAX_WORKERS = 32
_MAX_CLAIMS = 8192
# fcntl.F_GETPIPE_SZ, which Python has from 3.10 on.
_F_GETPIPE_SZ = 1032

_INDEX = struct.Struct("<I")
_HEAD = struct.Struct("<II")


class PoolResult(NamedTuple):
    """results by index; lost are the indexes that killed their process; the others were not reached in time."""

    results: dict[int, Any]
    lost: list[int]


def cores() -> int:
    """Return the number of processors that this process may use."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


def run(
    count: int,
    work: Callable[[int], Any],
    *,
    workers: int | None = None,
    deadline: float | None = None,
    serial_seconds: float = SERIAL_SECONDS,
) -> PoolResult:
    """Run work(0) … work(count - 1), whose results must be JSON-able, until the deadline (in time.monotonic()).

    At least one piece is done even after the deadline, so that repeated calls finish. work must not raise.
    """
    workers = cores() if workers is None else workers
    results: dict[int, Any] = {}
    serial_until = time.monotonic() + serial_seconds
    for index in range(count):
        now = time.monotonic()
        over = _is_over(deadline, now)
        if results and over:
            return PoolResult(results, [])
        if workers > 1 and count - index > 1 and now >= serial_until and not over:
            break
        results[index] = work(index)
    missing = [index for index in range(count) if index not in results]
    if missing:
        results.update(_forked(missing, work, workers, deadline))
    lost = []
    if not _is_over(deadline):
        # A process died. Each remaining piece is tried in a separate process, so that only the culprit is lost.
        for index in [index for index in missing if index not in results]:
            results.update(_forked([index], work, 1, None))
            if index not in results:
                lost.append(index)
    return PoolResult(results, lost)


def _is_over(deadline: float | None, now: float | None = None) -> bool:
    return deadline is not None and (time.monotonic() if now is None else now) >= deadline


def _forked(indexes: Sequence[int], work: Callable[[int], Any], workers: int, deadline: float | None) -> dict[int, Any]:
    # Every process claims its next chunk from one pipe; reads of four bytes do not interleave.
    claims, claims_in = os.pipe()
    # All claims are written before anyone reads. A pipe has 64 KiB, but one page only where its user has many.
    size = -(-len(indexes) // min(_MAX_CLAIMS, fcntl.fcntl(claims_in, _F_GETPIPE_SZ) // _INDEX.size))
    chunks = [indexes[start : start + size] for start in range(0, len(indexes), size)]
    os.write(claims_in, b"".join(_INDEX.pack(number) for number in range(len(chunks))))
    os.close(claims_in)
    children: dict[int, int] = {}
    for _worker in range(min(workers, len(chunks))):
        results_out, results_in = os.pipe()
        try:
            child = os.fork()
        except OSError:
            # Too many processes: continue with those that were started, or in this one.
            os.close(results_out)
            os.close(results_in)
            break
        if child == 0:
            # While these are open, it would not notice that the reading process has died.
            for descriptor in (results_out, *children):
                os.close(descriptor)
            _serve(chunks, work, claims, results_in, deadline)
        os.close(results_in)
        children[results_out] = child
    if not children:
        os.close(claims)
        return {index: work(index) for index in indexes if not _is_over(deadline)}
    os.close(claims)
    return _collect(children)


def _serve(
    chunks: Sequence[Sequence[int]], work: Callable[[int], Any], claims: int, results_in: int, deadline: float | None
) -> None:
    """Run in a child: process chunks until none is left, then exit."""
    status = 1
    try:
        with os.fdopen(results_in, "wb") as stream:
            while True:
                claim = os.read(claims, _INDEX.size)
                if len(claim) < _INDEX.size:
                    break
                for index in chunks[_INDEX.unpack(claim)[0]]:
                    if _is_over(deadline):
                        break
                    data = json.dumps(work(index)).encode()
                    stream.write(_HEAD.pack(index, len(data)) + data)
                    stream.flush()
        status = 0
    finally:
        # Not sys.exit: the parent's buffers and exit handlers must not run twice.
        os._exit(status)


def _collect(children: dict[int, int]) -> dict[int, Any]:
    results: dict[int, Any] = {}
    buffers = {descriptor: bytearray() for descriptor in children}
    with selectors.DefaultSelector() as selector:
        for descriptor in children:
            selector.register(descriptor, selectors.EVENT_READ)
        while buffers:
            for key, _events in selector.select():
                descriptor = key.fd
                data = os.read(descriptor, 1 << 16)
                if data:
                    buffers[descriptor] += data
                    continue
                results.update(_parse(buffers.pop(descriptor)))
                selector.unregister(descriptor)
                os.close(descriptor)
                os.waitpid(children[descriptor], 0)
    return results


def _parse(buffer: bytearray) -> dict[int, Any]:
    """Parse the results in a child's stream; an incomplete result of a dead child is omitted."""
    results: dict[int, Any] = {}
    at = 0
    while at + _HEAD.size <= len(buffer):
        index, length = _HEAD.unpack_from(buffer, at)
        at += _HEAD.size
        if at + length > len(buffer):
            break
        results[index] = json.loads(buffer[at : at + length])
        at += length
    return results
