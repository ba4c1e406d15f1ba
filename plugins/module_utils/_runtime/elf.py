# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which shared libraries a program or library names itself, read from its file without running anything."""

from __future__ import annotations

import struct
from typing import BinaryIO

_LOAD, _DYNAMIC = 1, 2
_END, _NEEDED, _STRING_TABLE = 0, 1, 5
_MAX_DYNAMIC_BYTES = 65536
_MAX_NAME_BYTES = 256


def needed_libraries(path: str) -> list[str] | None:
    """Return the names of the libraries that an ELF file needs, such as libgomp.so.1; None for other files."""
    try:
        with open(path, "rb") as stream:
            return _needed(stream)
    except (OSError, struct.error, ValueError, OverflowError):
        return None


def _needed(stream: BinaryIO) -> list[str]:
    ident = stream.read(16)
    if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        raise ValueError("not an ELF file")
    is_64, order = ident[4] == 2, "<>"[ident[5] - 1]
    header = _unpack(stream, f"{order}HHIQQQIHHH" if is_64 else f"{order}HHIIIIIHHH")
    first, size, count = header[4], header[8], header[9]
    # Type, offset in the file, address and size in the file of each segment.
    places = (0, 2, 3, 5) if is_64 else (0, 1, 2, 4)
    segments = []
    for number in range(count):
        stream.seek(first + number * size)
        entry = _unpack(stream, f"{order}IIQQQQQQ" if is_64 else f"{order}8I")
        segments.append([entry[place] for place in places])
    dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC), None)
    if dynamic is None:
        return []
    stream.seek(dynamic[1])
    data = stream.read(min(dynamic[3], _MAX_DYNAMIC_BYTES))
    pair = struct.Struct(f"{order}QQ" if is_64 else f"{order}II")
    entries = list(pair.iter_unpack(data[: len(data) // pair.size * pair.size]))
    ends = [place for place, (tag, _value) in enumerate(entries) if tag == _END]
    entries = entries[: ends[0]] if ends else entries
    table = next((value for tag, value in entries if tag == _STRING_TABLE), None)
    return [_name(stream, segments, table, value) for tag, value in entries if tag == _NEEDED and table is not None]


def _unpack(stream: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _name(stream: BinaryIO, segments: list[list[int]], table: int, place: int) -> str:
    """Return the text in the string table; the table is given by its address in memory."""
    loaded = [segment[1:] for segment in segments if segment[0] == _LOAD]
    start = next((offset + table - at for offset, at, size in loaded if at <= table < at + size), None)
    if start is None:
        raise ValueError("the string table is in no segment")
    stream.seek(start + place)
    return stream.read(_MAX_NAME_BYTES).partition(b"\0")[0].decode("ascii", "replace")
