# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Model files are read ahead while the servers before them still answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._health.preload import files_of, preload


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The files that the kernel was asked to read, and how."""
    calls: list[tuple[str, int]] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        assert (start, length) == (0, 0)
        calls.append((os.readlink(f"/proc/self/fd/{descriptor}"), advice))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return calls


def test_files_are_those_of_the_command_lines_with_all_shards() -> None:
    argvs = [
        ["llama-server", "--model", "/m/a.gguf", "--mmproj", "/m/p.gguf", "--port", "1"],
        ["llama-server", "--model", "/m/b-00001-of-00003.gguf"],
        ["llama-server", "--model", "/m/a.gguf"],
    ]
    assert files_of({"argv": argv} for argv in argvs) == [
        "/m/a.gguf",
        "/m/p.gguf",
        "/m/b-00001-of-00003.gguf",
        "/m/b-00002-of-00003.gguf",
        "/m/b-00003-of-00003.gguf",
    ]


def test_files_are_read_ahead_as_far_as_memory_allows(tmp_path: Path, advised: list[tuple[str, int]]) -> None:
    sizes = {"a": 600, "large": 900, "b": 300}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    os.mkfifo(tmp_path / "pipe")
    paths = [str(tmp_path / name) for name in ("missing", "pipe", *sizes)]
    assert preload(paths, 1000) == 900
    assert advised == [(str(tmp_path / name), os.POSIX_FADV_WILLNEED) for name in ("a", "b")]
