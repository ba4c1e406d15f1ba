# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures work in calls and bytes read, which do not depend on the machine and its load as time does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest


class Work:
    """Calls of Python and C functions by this thread, reads of files, and the bytes that they returned."""

    calls = 0
    reads = 0
    bytes_read = 0

    def __repr__(self) -> str:
        return f"{self.calls} calls, {self.reads} reads of {self.bytes_read} bytes"


@contextmanager
def counted() -> Iterator[Work]:
    """Count the work of this thread within the block. This makes it several times slower."""
    work = Work()
    pread = os.pread

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            work.calls += 1

    def counting_pread(descriptor: int, size: int, offset: int) -> bytes:
        data = pread(descriptor, size, offset)
        work.reads += 1
        work.bytes_read += len(data)
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counting_pread)
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            yield work
        finally:
            sys.setprofile(before)
