# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutated headers: the reader raises GgufError only, within 2 s and 64 MB, and a scan continues.

MAGI_FUZZ_SECONDS is the duration, with other files in each run. Add each finding to corpus/ as a small file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.bounded_reader import GgufError
from ansible_collections.magi.llama.plugins.module_utils._models.gguf import read_header
from ansible_collections.magi.llama.plugins.module_utils._models.read_files import read_group
from ansible_collections.magi.llama.plugins.module_utils._models.source_files import SourceFile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import gguf_files as make
from support.work import counted

REPOSITORY = Path(__file__).resolve().parents[3]
CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.gguf"))
SECONDS = float(os.environ.get("MAGI_FUZZ_SECONDS", "0"))
# Files of some kilobytes; at the limits a file takes 5 million, see test_gguf_limits.
MAX_CALLS = 100_000
MAX_BYTES = 64 << 20

NESTED = make.array(make.ARRAY, [make.array(make.ARRAY, [make.array(make.STRING, ["a", "b"])])])
SEEDS = [
    make.model_bytes(make.llama_values()),
    make.model_bytes(
        make.llama_values(
            **{
                "general.alignment": 64,
                "llama.attention.head_count": [4, 8],
                "llama.attention.head_count_kv": [0, 2],
                "llama.attention.sliding_window": 128,
                "llama.expert_count": 4,
                "tokenizer.ggml.tokens": ["<s>", "</s>", "x" * 300],
                "tokenizer.chat_template": "{{ messages }}",
                "split.count": 1,
            }
        ),
        [("token_embd.weight", (256, 4), 12), ("blk.0.attn_q.weight", (256, 256), 10), ("blk.1.x", (32,), 0)],
        alignment=64,
    ),
    make.header([make.key("nested", make.ARRAY, NESTED)], [make.tensor("t", (16,), 0)]) + b"\0" * 96,
    make.model_bytes(
        {
            "general.architecture": "deepseek2",
            "deepseek2.context_length": 4096,
            "deepseek2.block_count": 3,
            "deepseek2.embedding_length": 256,
            "deepseek2.attention.head_count": 4,
            "deepseek2.attention.head_count_kv": 1,
            "deepseek2.attention.key_length_mla": 192,
            "deepseek2.attention.value_length_mla": 128,
            "deepseek2.attention.kv_lora_rank": 512,
            "deepseek2.rope.dimension_count": 64,
        }
    ),
    make.model_bytes(
        {
            "general.architecture": "mamba",
            "mamba.context_length": 4096,
            "mamba.block_count": 3,
            "mamba.embedding_length": 256,
            "mamba.ssm.conv_kernel": 4,
            "mamba.ssm.inner_size": 512,
            "mamba.ssm.state_size": 16,
            "mamba.ssm.time_step_rank": 16,
        }
    ),
    make.model_bytes({"general.architecture": "clip", "general.type": "mmproj", "clip.vision.projection_dim": 256}),
]

INTERESTING = [0, 1, 2, 7, 8, 9, 12, 13, 31, 32, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20, 1 << 31, 1 << 32]
INTERESTING += [1 << 40, 1 << 61, 1 << 62, (1 << 62) + 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A valid file with a few errors."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        # Mostly in the header, where errors matter.
        at = draw(st.integers(0, min(len(data), 900) - 1))
        how = draw(st.sampled_from(["byte", "u64", "u32", "type", "cut", "insert", "repeat", "end"]))
        if how == "byte":
            data[at] = draw(st.integers(0, 255))
        elif how == "u64":
            data[at : at + 8] = draw(st.sampled_from(INTERESTING)).to_bytes(8, "little")
        elif how == "u32":
            data[at : at + 4] = (draw(st.sampled_from(INTERESTING)) & 0xFFFFFFFF).to_bytes(4, "little")
        elif how == "type":
            data[at : at + 4] = draw(st.integers(0, 45)).to_bytes(4, "little")
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=64))
        elif how == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 50))
        else:
            del data[at:]
    return bytes(data)


NUMBERS = [
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window",
    "attention.sliding_window_pattern", "attention.kv_lora_rank", "attention.key_length_mla",
    "attention.value_length_mla", "expert_count", "expert_used_count", "ssm.conv_kernel", "ssm.inner_size",
    "ssm.state_size", "ssm.group_count", "rope.dimension_count", "pooling_type", "vocab_size", "nextn_predict_layers",
    "full_attention_interval", "shortconv.l_cache", "wkv.head_size",
]  # fmt: skip
GENERAL = [
    "general.name", "general.file_type", "general.type", "general.size_label", "general.license",
    "general.base_model.0.name", "general.repo_url", "tokenizer.ggml.model", "tokenizer.chat_template", "split.count",
    "split.no", "clip.vision.projection_dim",
]  # fmt: skip
NAMES = ["llama", "gemma3", "gpt-oss", "deepseek2", "mamba", "jamba", "qwen3next", "lfm2", "nemotron_h", "bert", "clip"]


@st.composite
def odd_models(draw: st.DrawFn) -> bytes:
    """A well-formed file with invalid values."""
    name = draw(st.sampled_from(NAMES))
    whole = st.one_of(st.integers(0, 600), st.sampled_from(INTERESTING))
    value = st.one_of(
        whole.map(lambda number: (make.U64, number)),
        whole.map(lambda number: (make.U32, number & 0xFFFFFFFF)),
        st.integers(-10, 10).map(lambda number: (make.I32, number)),
        st.floats().map(lambda number: (make.F64, number)),
        st.booleans().map(lambda flag: (make.BOOL, flag)),
        st.binary(max_size=40).map(lambda data: (make.STRING, data)),
        st.lists(st.integers(-5, 1 << 31), max_size=8).map(lambda numbers: (make.ARRAY, make.array(make.I64, numbers))),
        st.lists(st.floats(), max_size=3).map(lambda numbers: (make.ARRAY, make.array(make.F64, numbers))),
    )
    good = {"context_length": 4096, "embedding_length": 256, "block_count": 4, "attention.head_count": 4}
    numbers = {f"{name}.{key}": (make.U32, number) for key, number in good.items()}
    numbers.update(draw(st.dictionaries(st.sampled_from([f"{name}.{key}" for key in NUMBERS]), value, max_size=8)))
    numbers.update(draw(st.dictionaries(st.sampled_from(GENERAL), value, max_size=4)))
    keys = [make.key("general.architecture", make.STRING, name)]
    keys += [make.key(key, kind, content) for key, (kind, content) in numbers.items()]
    blocks = draw(st.lists(whole, max_size=4, unique=True))
    tensors = [make.tensor(f"blk.{block}.attn_k.weight", (32,), 0, 128 * at) for at, block in enumerate(blocks)]
    data = make.header(keys, tensors)
    return data + b"\0" * (-len(data) % 32) + b"\0" * 128 * len(tensors)


def check(path: Path) -> str | None:
    """Read the file as a scan does; returns the reason of a rejection."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    reason = None
    status = path.stat()
    with counted() as work:
        try:
            read_header(str(path))
        except GgufError as error:
            reason = str(error)
        result = read_group([SourceFile(str(path), status.st_size, status.st_mtime_ns, status.st_ino)])
    assert reason is None or (reason.isprintable() and len(reason) < 1000)
    assert work.calls < MAX_CALLS, work
    assert tracemalloc.get_traced_memory()[1] - before < MAX_BYTES
    ((part, record),) = result.items()
    json.dumps(record, allow_nan=False).encode("ascii")
    if part == "rejected":
        reason = record["reason"]
        assert reason.isprintable() and len(reason) < 1000
        # An error of another type would be reported with this text.
        assert not reason.startswith("its metadata is invalid")
    else:
        assert all(part in record for part in ("path", "kind", "fingerprint"))
        assert "display_name" not in record or record["display_name"].isprintable()
    return reason


@pytest.fixture(autouse=True)
def traced() -> Any:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_seeds_are_valid(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "seed.gguf"
    path.write_bytes(SEEDS[seed])
    assert check(path) in (None, "it has no key general.architecture, so it is not a model")


def fuzz(folder: Path, examples: int) -> None:
    path = folder / "x.gguf"

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not SECONDS,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.one_of(files(), odd_models()))
    def run(data: bytes) -> None:
        path.write_bytes(data)
        check(path)

    run()


@pytest.mark.slow
def test_mutated_headers_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 400)
    ends_at = time.monotonic() + SECONDS
    while time.monotonic() < ends_at:
        fuzz(tmp_path, 2000)


def test_corpus_exists_and_is_small() -> None:
    assert len(CORPUS) >= 30
    assert all(path.stat().st_size < 4096 for path in CORPUS)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus_file_is_read_or_refused(path: Path) -> None:
    check(path)


def test_corpus_takes_little_memory() -> None:
    """The complete corpus in a process that may use at most 64 MB more than at its start."""
    code = (
        "import resource, sys; sys.path.insert(0, 'collections')\n"
        "from ansible_collections.magi.llama.plugins.module_utils._models.gguf import GgufError, read_header\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + (64 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        read_header(path)\n"
        "    except GgufError:\n"
        "        pass\n"
    )
    subprocess.run([sys.executable, "-c", code, *map(str, CORPUS)], cwd=REPOSITORY, check=True, timeout=60)
