# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Zstandard frames on a controller that may have nothing for them: such a frame is written without compression.

A frame of stored blocks is as valid as any, so every archive has one format and is read by zstd and tar everywhere.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import struct
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from .._core.commands import Completed, run_command
from .._core.errors import MagiError

MAGIC = b"\x28\xb5\x2f\xfd"
# A single segment with a content size of 8 bytes, no checksum and no dictionary.
STORED = b"\xe0"
BLOCK_BYTES = 128 << 10
TIMEOUT_SECONDS = 60.0
PROGRAM = "zstd"
# No archive of ours comes near it.
MAX_FILE_BYTES = 1 << 30


class ZstdError(MagiError):
    """Data that is not a Zstandard frame, is too large, or needs a program that is missing."""


def compress(data: bytes) -> bytes:
    """Return one frame with the data, compressed where Python or the program zstd can."""
    library = _library()
    if library is not None:
        return bytes(library.compress(data))
    program = shutil.which(PROGRAM)
    if program is not None:
        with tempfile.TemporaryDirectory() as folder:
            done, written = _converted([program], data, folder, MAX_FILE_BYTES)
            if done.code == 0 and written is not None:
                return written
    return stored(data)


def stored(data: bytes) -> bytes:
    """Return a frame with the data as it is."""
    frame = [MAGIC, STORED, struct.pack("<Q", len(data))]
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)] or [b""]
    for number, block in enumerate(blocks, 1):
        frame += [struct.pack("<I", len(block) << 3 | (number == len(blocks)))[:3], block]
    return b"".join(frame)


def decompress(frame: bytes, limit: int) -> bytes:
    """Return the data of a frame, up to limit bytes. Raises ZstdError, without the name of the file."""
    if frame[:4] != MAGIC:
        raise ZstdError("it is not a Zstandard file")
    data = _of_stored(frame, limit)
    if data is None:
        data = _with_library(frame, limit)
    if data is None:
        data = _with_program(frame, limit)
    if len(data) > limit:
        raise ZstdError(f"it has more than {limit >> 20} MiB")
    return data


def _library() -> Any:
    """Python's own module, which 3.14 has, or its backport; None without either."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _of_stored(frame: bytes, limit: int) -> bytes | None:
    """The data of a frame that stored has made; None for one of another program."""
    if frame[4:5] != STORED or len(frame) < 13:
        return None
    size, at, data = struct.unpack("<Q", frame[5:13])[0], 13, bytearray()
    if size > limit:
        raise ZstdError(f"it has more than {limit >> 20} MiB")
    is_last = False
    while not is_last:
        if len(frame) < at + 3:
            raise ZstdError("it is truncated")
        header = int.from_bytes(frame[at : at + 3], "little")
        is_last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        if kind != 0:
            return None
        if len(frame) < at + 3 + length:
            raise ZstdError("it is truncated")
        data += frame[at + 3 : at + 3 + length]
        at += 3 + length
    if len(data) != size or at != len(frame):
        raise ZstdError("it is damaged")
    return bytes(data)


def _with_library(frame: bytes, limit: int) -> bytes | None:
    library = _library()
    if library is None:
        return None
    decompressor = library.ZstdDecompressor()
    try:
        data = bytes(decompressor.decompress(frame, limit + 1))
    except (library.ZstdError, EOFError) as error:
        raise ZstdError(f"it is damaged ({error})") from error
    if not decompressor.eof and len(data) <= limit:
        raise ZstdError("it is truncated")
    return data


def _with_program(frame: bytes, limit: int) -> bytes:
    program = shutil.which(PROGRAM)
    if program is None:
        raise ZstdError(
            "reading it needs the program zstd on this controller (apt install zstd, dnf install zstd), or Python 3.14"
        )
    with tempfile.TemporaryDirectory() as folder:
        # Not more than that: a small file may hold very much.
        done, data = _converted([program, "-d"], frame, folder, limit + 1)
    if done.code == -signal.SIGXFSZ or (data is not None and len(data) > limit):
        raise ZstdError(f"it has more than {limit >> 20} MiB")
    if done.code != 0 or data is None:
        text = done.stderr.strip()
        raise ZstdError(f"it is damaged ({text.removeprefix('zstd: ')})" if text else "it is damaged")
    return data


def _converted(command: Sequence[str], data: bytes, folder: str, limit: int) -> tuple[Completed, bytes | None]:
    """Run zstd on a file with the data; what it has written, up to limit bytes."""
    source, target = os.path.join(folder, "archive.zst"), os.path.join(folder, "data")
    with open(source, "wb") as stream:
        stream.write(data)
    argv = [*command, "-q", "-f", source, "-o", target]
    done = run_command(argv, os.environ, TIMEOUT_SECONDS, before_exec=partial(_limit_files, limit))
    try:
        with open(target, "rb") as stream:
            return done, stream.read()
    except FileNotFoundError:
        return done, None


def _limit_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
