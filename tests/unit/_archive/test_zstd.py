# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Zstandard with and without something that compresses: every frame is read by the program zstd, and the reverse."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from ansible_collections.magi.llama.plugins.module_utils._archive import zstd

DATA = [b"", b"a", os.urandom(300_000), bytes(zstd.BLOCK_BYTES)]
needs_zstd = pytest.mark.skipif(not shutil.which("zstd"), reason="needs the program zstd")


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller with neither Python's module nor the program."""
    monkeypatch.setattr(zstd, "_library", lambda: None)
    monkeypatch.setattr(zstd.shutil, "which", lambda _name: None)


@pytest.mark.parametrize("data", DATA, ids=len)
def test_frame_is_written_and_read_without_anything(nothing: None, data: bytes) -> None:
    assert zstd.decompress(zstd.compress(data), 1 << 20) == data


@needs_zstd
@pytest.mark.parametrize("data", DATA, ids=len)
def test_stored_frame_is_read_by_zstd(data: bytes) -> None:
    done = subprocess.run(["zstd", "-d", "-c"], input=zstd.stored(data), capture_output=True, check=True)
    assert done.stdout == data


@needs_zstd
@pytest.mark.parametrize("data", DATA, ids=len)
def test_frame_of_zstd_is_read(data: bytes) -> None:
    frame = subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    assert zstd.decompress(frame, 1 << 20) == data
    assert zstd.decompress(zstd.compress(data), 1 << 20) == data


@needs_zstd
def test_compressed_frame_without_anything_names_the_fix(nothing: None) -> None:
    frame = subprocess.run(["/usr/bin/zstd", "-c"], input=b"a" * 999, capture_output=True, check=True).stdout
    with pytest.raises(zstd.ZstdError, match="needs the program zstd on this controller"):
        zstd.decompress(frame, 1 << 20)


@pytest.mark.parametrize("compress", [zstd.compress, zstd.stored], ids=["compressed", "stored"])
def test_truncated_and_large_frames_are_refused(compress) -> None:
    frame = compress(bytes(range(256)) * 1000)
    for size in (5, 20, len(frame) - 1):
        with pytest.raises(zstd.ZstdError, match=r"truncated|damaged"):
            zstd.decompress(frame[:size], 1 << 20)
    with pytest.raises(zstd.ZstdError, match="more than"):
        zstd.decompress(frame, 1000)
    with pytest.raises(zstd.ZstdError, match="not a Zstandard"):
        zstd.decompress(b"PK" + frame, 1 << 20)
