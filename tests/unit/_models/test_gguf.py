# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header reader: its results, its number of reads, and its errors."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from ansible_collections.magi.llama.plugins.module_utils._models import bounded_reader
from ansible_collections.magi.llama.plugins.module_utils._models import gguf as gguf_module
from ansible_collections.magi.llama.plugins.module_utils._models.bounded_reader import GgufError
from ansible_collections.magi.llama.plugins.module_utils._models.ggml_types import GGML_TYPES
from ansible_collections.magi.llama.plugins.module_utils._models.gguf import read_header
from support import gguf_files as make
from support.work import counted

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.write_vocabulary_heavy(tmp_path_factory.mktemp("heavy") / "heavy.gguf")


def read_bytes(tmp_path: Path, data: bytes) -> gguf_module.Header:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    return read_header(str(path))


def test_types_match_gguf_package() -> None:
    expected = {
        kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind in gguf.GGML_QUANT_SIZES
    }
    # llama.cpp has one more by now; test_ggml_types.py holds that against llama-quantize.
    expected[42] = ("Q2_0", 64, 18)
    assert {number: tuple(kind) for number, kind in GGML_TYPES.items()} == expected
    assert len(expected) == len(gguf.GGMLQuantizationType) + 1


def test_reads_a_real_model(tmp_path: Path) -> None:
    path = make.write_tiny_llama(tmp_path / "tiny.gguf")
    header = read_header(str(path))
    assert header.version == 3
    assert header.metadata["general.name"] == "Tiny Llama"
    assert header.metadata["llama.attention.head_count_kv"] == 2
    assert header.metadata["tokenizer.chat_template"] == make.CHAT_TEMPLATE
    assert header.array_lengths["tokenizer.ggml.tokens"] == 260
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert len(header.tensors) == 2 * 9 + 3
    first = header.tensors[0]
    assert (first.name, first.shape, first.type, first.elements, first.n_bytes) == (
        "token_embd.weight",
        (256, 260),
        1,
        66_560,
        133_120,
    )
    assert header.data_end == header.file_size == path.stat().st_size


def test_arrays(tmp_path: Path) -> None:
    nested = make.array(make.ARRAY, [make.array(make.U8, [1, 2]), make.array(make.STRING, ["a", "bc"])])
    header = read_bytes(
        tmp_path,
        make.header(
            [
                make.key("short", make.ARRAY, make.array(make.I32, [1, -2, 3])),
                make.key("flags", make.ARRAY, make.array(make.BOOL, [True, False])),
                make.key("empty", make.ARRAY, make.array(make.U32, [])),
                make.key("limit", make.ARRAY, make.array(make.U8, [7] * 4096)),
                make.key("long", make.ARRAY, make.array(make.U8, [7] * 4097)),
                make.key("strings", make.ARRAY, make.array(make.STRING, ["", "x", "y" * 300, "\0" * 9])),
                make.key("nested", make.ARRAY, nested),
                make.key("last", make.I64, -5),
            ]
        ),
    )
    assert header.metadata == {
        "short": (1, -2, 3),
        "flags": (True, False),
        "empty": (),
        "limit": (7,) * 4096,
        "last": -5,
    }
    lengths = {"short": 3, "flags": 2, "empty": 0, "limit": 4096, "long": 4097, "strings": 4, "nested": 2}
    assert header.array_lengths == lengths


def test_scalars_of_every_width(tmp_path: Path) -> None:
    values = {
        "a": (make.U8, 255),
        "b": (make.I8, -1),
        "c": (make.U16, 65535),
        "d": (make.I16, -2),
        "e": (make.U32, 1 << 31),
        "f": (make.I32, -3),
        "g": (make.F32, 0.5),
        "h": (make.BOOL, True),
        "i": (make.STRING, "häß"),
        "j": (make.U64, 1 << 63),
        "k": (make.I64, -4),
        "l": (make.F64, 0.1),
    }
    header = read_bytes(tmp_path, make.header([make.key(name, *value) for name, value in values.items()], version=2))
    assert header.version == 2
    assert header.metadata == {name: value for name, (_kind, value) in values.items()}


def test_texts_too_long_are_replaced_by_length(tmp_path: Path) -> None:
    keys = [make.key("tokenizer.huggingface.json", make.STRING, "x" * (2 << 20)), make.key("after", make.U8, 1)]
    header = read_bytes(tmp_path, make.header(keys))
    assert header.metadata == {"after": 1}
    assert header.text_lengths == {"tokenizer.huggingface.json": 2 << 20}


def test_texts_not_utf8_are_marked(tmp_path: Path) -> None:
    header = read_bytes(tmp_path, make.header([make.key("general.name", make.STRING, b"caf\xe9")]))
    assert header.metadata["general.name"] == "caf�"


@pytest.mark.parametrize("block", [48, 64, 100, 4096])
def test_header_does_not_depend_on_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    path = str(make.write_tiny_llama(tmp_path / "tiny.gguf"))
    expected = read_header(path)
    monkeypatch.setattr(bounded_reader, "BLOCK", block)
    assert read_header(path) == expected


@pytest.mark.slow
def test_reads_are_at_most_one_per_megabyte(heavy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    pread = os.pread

    def counting(descriptor: int, count: int, offset: int) -> bytes:
        reads.append((offset, count))
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counting)
    header = read_header(str(heavy))
    assert header.array_lengths["tokenizer.ggml.merges"] == 280_000
    assert len(reads) <= header.data_offset // (1 << 20) + 1
    assert sum(count for _offset, count in reads) <= header.data_offset + (1 << 20)


@pytest.mark.slow
def test_large_header_takes_little_work(heavy: Path) -> None:
    """One call for each of 408,000 tokens and merges. The goal of make bench is 0.1 s."""
    with counted() as work:
        header = read_header(str(heavy))
    assert sum(header.array_lengths.values()) > 408_000
    assert work.calls < 1.01 * sum(header.array_lengths.values()), work


@pytest.mark.slow
def test_large_header_takes_little_memory(heavy: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'collections')\n"
        "from ansible_collections.magi.llama.plugins.module_utils._models.gguf import read_header\n"
        "read_header(sys.argv[1])\n"
        # Not getrusage: its maximum is inherited from the parent process.
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(heavy)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 32 * 1024


BIG = 1 << 62
KEY = make.key("a", make.U8, 1)
HOSTILE = {
    "empty": (b"", r"not a GGUF file: it has 0 bytes"),
    "four bytes": (b"GGUF", r"truncated"),
    "other magic": (b"PK\3\4" + b"x" * 40, r"not a GGUF file: it begins with b'PK"),
    "zeros": (b"\0" * 64, r"begins with zeros"),
    "version 1": (make.header(version=1), r"version 1"),
    "version 4": (make.header(version=4), r"version 4 is not known"),
    "version 0": (make.header(version=0), r"version 0 is not known"),
    "big endian": (b"GGUF\0\0\0\3" + b"\0" * 40, r"big-endian"),
    "key count": (make.header([KEY], key_count=BIG), r"announces 4611686018427387904 keys"),
    "key count too high": (make.header([KEY], key_count=2), r"truncated"),
    "tensor count": (make.header([KEY], tensor_count=BIG), r"announces 4611686018427387904 tensors"),
    "many keys": (make.header(key_count=70_000) + b"\0" * 13 * 70_000, r"no model has more than 65536"),
    "array of 2^62 bytes": (
        make.header([make.key("a", make.ARRAY, make.array(make.U8, [], count=BIG))]),
        r"array 'a' has 4611686018427387904 elements",
    ),
    "array of 2^62 strings": (
        make.header([make.key("a", make.ARRAY, make.array(make.STRING, [], count=BIG))]),
        r"array 'a' has 4611686018427387904 elements",
    ),
    "array of 2^61 doubles": (
        make.header([make.key("a", make.ARRAY, make.array(make.F64, [], count=1 << 61))]),
        r"array 'a' has",
    ),
    "array of arrays, too many": (
        make.header([make.key("a", make.ARRAY, make.array(make.ARRAY, [], count=BIG))]),
        r"array 'a' has",
    ),
    "array of strings, truncated": (
        make.header([make.key("a", make.ARRAY, make.array(make.STRING, ["abc"], count=1))])[:-1],
        r"truncated",
    ),
    "string in an array of 2^64-1": (
        make.header([make.key("a", make.ARRAY, make.array(make.STRING, [""], count=2) + b"\xff" * 8)]),
        r"truncated",
    ),
    "3,000 nested arrays": (
        make.header([make.key("a", make.ARRAY, b"\x09\0\0\0\1\0\0\0\0\0\0\0" * 3000)]),
        r"nested more than 4 deep",
    ),
    "array of an unknown type": (
        make.header([make.key("a", make.ARRAY, make.array(99, [], count=1))]),
        r"elements of the unknown type 99",
    ),
    "unknown type": (make.header([make.text("a") + b"\x63\0\0\0"]) + b"\0" * 8, r"'a' has the unknown type 99"),
    "long string": (make.header([make.text("a") + b"\x08\0\0\0" + b"\xff" * 8]), r"truncated"),
    "long key": (make.header([make.key("k" * 70_000, make.U8, 1)]), r"a key has 70000 bytes, 65535 at most"),
    "key past the end": (make.header([b"\xff" * 8]) + b"\0" * 5, r"a key has 18446744073709551615 bytes"),
    "key that is not UTF-8": (make.header([make.key(b"\xff", make.U8, 1)]), r"a key is not UTF-8"),
    "same key twice": (make.header([KEY, KEY]), r"key 'a' occurs twice"),
    "same key as array": (
        make.header([KEY, make.key("a", make.ARRAY, make.array(make.STRING, ["x"]))]),
        r"key 'a' occurs twice",
    ),
    "same key as array before": (
        make.header([make.key("a", make.ARRAY, make.array(make.STRING, ["x"])), KEY]),
        r"key 'a' occurs twice",
    ),
    "long text past the end": (
        make.header([make.text("a") + b"\x08\0\0\0" + (2 << 20).to_bytes(8, "little")]),
        r"truncated",
    ),
    "alignment 0": (make.header([make.key("general.alignment", make.U32, 0)]), r"not a power of two"),
    "alignment 48": (make.header([make.key("general.alignment", make.U32, 48)]), r"not a power of two"),
    "alignment as text": (make.header([make.key("general.alignment", make.STRING, "32")]), r"not of the type u32"),
    "alignment of 64 bits": (make.header([make.key("general.alignment", make.U64, 32)]), r"not of the type u32"),
    "huge alignment": (
        make.header([make.key("general.alignment", make.U32, 1 << 31)], [make.tensor("t", (32,))]),
        r"truncated: tensor data ends at byte 2147483712",
    ),
    "five dimensions": (make.header([], [make.tensor("t", (1, 1, 1, 1, 1))]), r"'t' has 5 dimensions"),
    "2^32-1 dimensions": (make.header([], [make.text("t") + b"\xff" * 40]), r"'t' has 4294967295 dimensions"),
    "huge shape": (make.header([], [make.tensor("t", (1 << 40, 1 << 40))]), r"'t' has the shape"),
    "negative dimension": (make.header([], [make.tensor("t", (0, (1 << 64) - 1))]), r"'t' has the shape"),
    "unknown tensor type": (make.header([], [make.tensor("t", (32,), 137)]), r"'t' has the type 137"),
    "removed tensor type": (make.header([], [make.tensor("t", (32,), 4)]), r"'t' has the type 4,"),
    "broken rows": (make.header([], [make.tensor("t", (33, 2), 8)]), r"'t' has rows of 33 elements"),
    "long tensor name": (make.header([], [make.tensor("t" * 64, (32,))]), r"tensor's name has 64 bytes, 63 at most"),
    "same tensor twice": (
        make.header([], [make.tensor("t", (16,), 0, 0), make.tensor("t", (16,), 0, 64)]) + b"\0" * 200,
        r"two tensors have the same name",
    ),
    "offset past the end": (make.header([], [make.tensor("t", (16,), 0, BIG)]), r"must be at 0"),
    "tensors that overlap": (
        make.header([], [make.tensor("t", (16,), 0, 0), make.tensor("u", (16,), 0, 32)]) + b"\0" * 200,
        r"'u' is at 32 according to the header, but must be at 64",
    ),
    "data missing": (
        make.header([], [make.tensor("t", (128,), 0, 0)]) + b"\0" * 10,
        r"^truncated: tensor data ends at byte 576, the file has 67",
    ),
    "a terminal's escape in a name": (make.header([make.text("\x1b[2J") + b"\x63\0\0\0"]) + b"\0" * 8, r"'\\x1b\[2J'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_header_hostile_is_refused(tmp_path: Path, case: str) -> None:
    data, reason = HOSTILE[case]
    with counted() as work, pytest.raises(GgufError, match=reason) as caught:
        read_bytes(tmp_path, data)
    # The work is limited by the bytes of the file, not by the counts in its header.
    assert work.calls < 1000 + len(data), work
    assert str(caught.value).isprintable()


def test_header_truncated_at_any_byte_is_refused(tmp_path: Path) -> None:
    nested = [make.key("n", make.ARRAY, make.array(make.ARRAY, [make.array(make.STRING, ["a", "b"])]))]
    head = make.header(
        [*make.keys_of({"general.name": "x", "list": [1, 2], "texts": ["a", "b"], "flag": True}), *nested],
        [make.tensor("t", (16, 2), 0, 0)],
    )
    data = head + b"\0" * (-len(head) % 32) + b"\0" * 128
    read_bytes(tmp_path, data)
    for length in range(len(data)):
        with pytest.raises(GgufError):
            read_bytes(tmp_path, data[:length])


def test_trailing_bytes_are_accepted(tmp_path: Path) -> None:
    header = read_bytes(tmp_path, make.model_bytes(make.llama_values()) + b"\0" * 100)
    assert header.file_size == header.data_end + 100


def test_vocabulary_without_tensors_needs_no_padding(tmp_path: Path) -> None:
    header = read_bytes(tmp_path, make.header([KEY]))
    assert header.data_end == header.file_size


def test_processor_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse.gguf"
    count = 1 << 27
    path.write_bytes(make.header([make.key("a", make.ARRAY, make.array(make.STRING, [], count=count))]))
    os.truncate(path, path.stat().st_size + 8 * count)
    # A clock that advances by 10 ms at each call; the reader calls it once for each mebibyte.
    looks = itertools.count()
    monkeypatch.setattr(bounded_reader.time, "thread_time", lambda: next(looks) / 100)
    with counted() as work, pytest.raises(GgufError, match="processor time"):
        read_header(str(path), time_budget=0.1)
    assert work.reads <= 11, work


def test_files_not_regular_are_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    device = tmp_path / "device.gguf"
    device.symlink_to("/dev/zero")
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    cases = {
        str(fifo): "not a regular file",
        str(device): "not a regular file",
        str(tmp_path): "not a regular file",
        str(loop): "cannot be opened",
        str(tmp_path / "none.gguf"): "cannot be opened: No such file",
        "a\0b.gguf": "cannot be opened",
    }
    for path, reason in cases.items():
        with pytest.raises(GgufError, match=reason):
            read_header(path)


def test_file_replaced_by_fifo_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    regular = os.stat(__file__)
    # The first stat, before the file is replaced.
    monkeypatch.setattr(os, "stat", lambda _path: regular)
    with pytest.raises(GgufError, match="not a regular file"):
        read_header(str(fifo))


def test_file_shrinking_during_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(make.model_bytes(make.llama_values())[:100])
    descriptor, _status = gguf_module.open_regular(str(path))
    try:
        with pytest.raises(GgufError, match="became shorter"):
            gguf_module.read_open_header(descriptor, 10_000, bounded_reader.Budget())
    finally:
        os.close(descriptor)
