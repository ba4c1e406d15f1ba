# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read a header from an untrusted file: never beyond its end, and within a budget."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from .._core.errors import MagiError

BLOCK = 1 << 20

# Limits of what is kept in memory. The largest real headers are far below: 2,000 keys, 10,000 tensors, 100 KB of text.
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_KEPT_STRING = 1 << 20
MAX_KEPT_TEXT = 4 << 20
MAX_KEPT_VALUES = 1 << 18


class GgufError(MagiError):
    """Raised if a file is not a GGUF file that llama.cpp could load; the text is the reason."""


class ReadError(GgufError):
    """Raised if a file could not be read this time; its content may be valid."""


U64 = struct.Struct("<Q")
STRING_TYPE = 8
# Metadata value types of fixed size: struct code of one little-endian element.
FIXED_TYPES: dict[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
FIXED_SIZES = {number: struct.calcsize("<" + code) for number, code in FIXED_TYPES.items()}


class BoundedReader:
    """A cursor over a file. Reads blocks of 1 MiB and no byte twice; long skipped ranges are not read at all."""

    def __init__(self, descriptor: int, size: int, deadline: Callable[[], None]) -> None:
        self.size = size
        self._descriptor = descriptor
        self._deadline = deadline
        self._buffer = b""
        self._start = 0  # where the buffer begins in the file
        self._at = 0  # the cursor within the buffer; may be beyond its end after a skip

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def remaining(self) -> int:
        return self.size - self._start - self._at

    def _fill(self, count: int) -> None:
        """Fill the buffer with at least count bytes from the cursor on."""
        if count > self.remaining:
            raise GgufError(
                f"truncated: the header continues after byte {self.size}, where the file ends"
                if self.position <= self.size
                else f"truncated: the header continues at byte {self.position}, the file has {self.size}"
            )
        self._deadline()
        tail = self._buffer[self._at :]
        self._start += self._at
        self._at = 0
        pieces = [tail]
        have = len(tail)
        while have < count:
            piece = os.pread(self._descriptor, max(BLOCK, count - have), self._start + have)
            if not piece:
                raise ReadError("truncated: the file became shorter while it was read")
            pieces.append(piece)
            have += len(piece)
        self._buffer = b"".join(pieces)

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        if self._at + layout.size > len(self._buffer):
            self._fill(layout.size)
        values = layout.unpack_from(self._buffer, self._at)
        self._at += layout.size
        return values

    def bytes(self, count: int) -> bytes:
        if self._at + count > len(self._buffer):
            self._fill(count)
        data = self._buffer[self._at : self._at + count]
        self._at += count
        return data

    def skip(self, count: int) -> None:
        # May go past the end of the file: the next read, or the check at the end of the header, detects it.
        self._at += count

    def skip_strings(self, count: int) -> None:
        """Skip count length-prefixed strings. A scan spends most of its time in this loop."""
        unpack = U64.unpack_from
        while count:
            buffer = self._buffer
            at = self._at
            left = 0
            try:
                for left in range(count, 0, -1):  # noqa: B007
                    at += 8 + unpack(buffer, at)[0]
                left = 0
            except (struct.error, OverflowError, IndexError):
                pass  # the next prefix is not in the buffer
            self._at = at
            count = left
            if self.remaining < 8 * count:
                raise GgufError(f"truncated or broken: {count} strings of an array extend beyond the end of the file")
            if count:
                self._fill(8)


class Budget:
    """Limits for reading one model with all its shards: processor time, and data kept in memory."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds = seconds
        # Processor time, so that a good file on a slow disk is not rejected.
        self._ends_at = time.thread_time() + seconds
        self._text = 0
        self._values = 0
        self._keys = 0
        self._tensors = 0

    def time(self) -> None:
        if time.thread_time() > self._ends_at:
            raise GgufError(f"broken: reading the header takes more than {self._seconds:g} s of processor time")

    def counts(self, keys: int, tensors: int) -> None:
        self._keys += keys
        self._tensors += tensors
        for count, limit, what in ((self._keys, MAX_KEYS, "keys"), (self._tensors, MAX_TENSORS, "tensors")):
            if count > limit:
                raise GgufError(f"broken: the header announces {count} {what}; no model has more than {limit}")

    def text(self, count: int) -> None:
        self._text += count
        if self._text > MAX_KEPT_TEXT:
            raise GgufError(f"broken: the header has more than {MAX_KEPT_TEXT >> 20} MiB of names and texts")

    def values(self, count: int) -> None:
        self._values += count
        if self._values > MAX_KEPT_VALUES:
            raise GgufError(f"broken: the header has more than {MAX_KEPT_VALUES} numbers in short arrays")
