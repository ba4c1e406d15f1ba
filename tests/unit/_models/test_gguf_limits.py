# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files at every limit at once: a model of them, with any number of shards, takes a limited number of calls and 64 MB.

Calls are counted because time depends on the machine: 5 million take about a second on an idle machine, and a model may
take 2 s of processor time.
"""

from __future__ import annotations

import itertools
import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models import bounded_reader, read_files
from ansible_collections.magi.llama.plugins.module_utils._models.bounded_reader import (
    MAX_KEPT_STRING,
    MAX_KEPT_TEXT,
    MAX_KEPT_VALUES,
    MAX_KEYS,
    MAX_TENSORS,
    Budget,
)
from ansible_collections.magi.llama.plugins.module_utils._models.source_files import SourceFile
from support import gguf_files as make
from support.work import counted

pytestmark = pytest.mark.slow

MAX_CALLS = 5_000_000
MAX_BYTES = 64 << 20
TENSORS = [make.tensor(f"{number:05}", (1, 1, 1, 1), 24, 32 * number) for number in range(MAX_TENSORS)]
# With one such character Python stores the whole text with four bytes per character.
WIDE = "\N{GRINNING FACE}"


def full(*, texts: bool, more: dict[str, Any] | None = None) -> bytes:
    """As many keys, tensors, numbers and letters as the reader accepts; letters are in texts, or in keys and names."""
    values = {**make.llama_values(), **(more or {})}
    keys = [
        make.key(name, make.STRING if isinstance(value, str) else make.U32, value) for name, value in values.items()
    ]
    letters = MAX_KEPT_TEXT - 5 * MAX_TENSORS - 1000
    if texts:
        wide_text = WIDE.encode() + b"\xff" * (MAX_KEPT_STRING - 4)
        count = letters // MAX_KEPT_STRING
        keys += [make.key(f"text{number}", make.STRING, wide_text) for number in range(count)]
        letters -= count * MAX_KEPT_STRING
    left = MAX_KEYS - len(keys)
    padding = WIDE * max(0, letters // left - 5)
    numbers = make.array(make.U64, [(1 << 63) - 1 - number for number in range(MAX_KEPT_VALUES // left)])
    keys += [make.key(f"{padding}{number:05}", make.ARRAY, numbers) for number in range(left)]
    data = make.header(keys, TENSORS)
    return data + bytes(-len(data) % 32 + 32 * MAX_TENSORS)


def source(path: Path) -> SourceFile:
    status = path.stat()
    return SourceFile(str(path), status.st_size, status.st_mtime_ns, status.st_ino)


def measure(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    files = [source(path) for path in paths]
    # Counting calls and tracing memory make it several times slower, so the time limit is off.
    monkeypatch.setattr(read_files, "Budget", partial(Budget, 600.0))
    with counted() as work:
        result = read_files.read_group(files)
    assert work.calls < MAX_CALLS, work
    # No byte is read twice, and the shards together take no more than one file at the limits and the start of another.
    assert work.bytes_read < 2 * max(file.size for file in files), work
    tracemalloc.start()
    try:
        assert read_files.read_group(files).keys() == result.keys()
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()
    assert len(json.dumps(result)) < 1_000_000
    return result


@pytest.mark.parametrize("texts", [False, True])
def test_file_at_all_limits_is_within_time_and_memory(
    texts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "full.gguf"
    path.write_bytes(full(texts=texts))
    # The file is accepted, so the measurement covers all of it.
    assert "models" in measure([path], monkeypatch)


def test_limits_are_shared_by_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"full-{number + 1:05}-of-00006.gguf")
        paths[-1].write_bytes(full(texts=True, more={"split.no": number, "split.count": 6}))
    record = measure(paths, monkeypatch)["rejected"]
    assert (
        record["reason"]
        == "full-00002-of-00006.gguf: broken: the header announces 131072 keys; no model has more than 65536"
    )


def test_time_limit_is_shared_by_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"full-{number + 1:05}-of-00003.gguf")
        keys = [make.key("tokens", make.ARRAY, make.array(make.STRING, [""] * 2_000_000))]
        paths[-1].write_bytes(make.header([*keys, make.key("split.no", make.U32, number)], []))
    # A clock that advances by 1 ms at each call: one shard takes about 16 ms, three take 48.
    looks = itertools.count()
    monkeypatch.setattr(bounded_reader.time, "thread_time", lambda: next(looks) / 1000)
    monkeypatch.setattr(read_files, "Budget", partial(Budget, 0.03))
    alone = read_files.read_group([source(paths[0])])
    assert "processor time" not in json.dumps(alone)
    record = read_files.read_group([source(path) for path in paths])["rejected"]
    assert "more than 0.03 s of processor time" in record["reason"]
