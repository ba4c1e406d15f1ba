# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gguf package's reader is the oracle: every field of every test file must be equal.

MAGI_LLAMA_BIN_DIR is the folder with llama-quantize; without it the quantised files are skipped.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.gguf import MAX_KEPT_ELEMENTS, read_header
from ansible_collections.magi.llama.plugins.module_utils._models.records import describe
from ansible_collections.magi.llama.plugins.module_utils._models.source_files import SourceFile
from support import gguf_files as make
from support.architectures import ARCHITECTURES, write_model

pytestmark = pytest.mark.slow

BIN_DIR = os.environ.get("MAGI_LLAMA_BIN_DIR", "")
QUANTIZATIONS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0", "BF16", "IQ4_NL", "TQ1_0")


def quantised(quantization: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = make.write_tiny_llama(folder / "tiny-F16.gguf")
        target = folder / f"tiny-{quantization}.gguf"
        command = [os.path.join(BIN_DIR, "llama-quantize"), str(source), str(target), quantization, "1"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return target

    return write


def aligned(folder: Path) -> Path:
    path = folder / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    writer.add_context_length(1)
    writer.add_embedding_length(1)
    writer.add_block_count(1)
    for number in range(3):
        writer.add_tensor(f"t{number}", np.ones((number + 1, 7), dtype=np.float32))
    make.finish(writer)
    return path


def every_type(folder: Path) -> Path:
    path = folder / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("context_length", 4096), ("embedding_length", 256), ("block_count", 3)):
        writer.add_uint64(f"llama.{name}", value)
    writer.add_array("llama.attention.head_count", [4, 8, 4])
    writer.add_array("llama.attention.head_count_kv", [2, 2, 2])
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -1)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -2)
    writer.add_int32("i32", -3)
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_int64("i64", -4)
    writer.add_bool("flag", True)
    writer.add_string("text", "ünïcode\n")
    writer.add_array("floats", [0.5, 0.25])
    writer.add_array("flags", [True, False])
    writer.add_array("long", list(range(5000)))
    writer.add_array("texts", ["a", "", "b" * 1000])
    writer.add_array("general.tags", ["x"])
    writer.add_string("general.license", "mit")
    writer.add_tensor("token_embd.weight", np.zeros((4, 256), dtype=np.float32))
    writer.add_tensor("scalar", np.zeros((1,), dtype=np.float32))
    writer.add_tensor("cube", np.zeros((2, 3, 4, 256), dtype=np.int8))
    make.finish(writer)
    return path


TIERS = {"F32": "F32", "F16": "F16", "BF16": "F16", "IQ4_NL": "Q4", "TQ1_0": "Q1"}
TIERS |= {f"Q{bits}_{kind}": f"Q{bits}" for bits in range(2, 9) for kind in ("K", "0", "1")}


def with_origin(folder: Path) -> Path:
    def origin(writer: gguf.GGUFWriter) -> None:
        writer.add_repo_url("https://example.org/tiny")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, "Tiny Base")
        writer.add_base_model_repo_url(0, "https://example.org/base")

    return make.write_tiny_llama(folder / "origin-F16.gguf", extra=origin)


FILES: dict[str, Callable[[Path], Path]] = {
    "tiny": lambda folder: make.write_tiny_llama(folder / "Tiny-F16.gguf"),
    "plain": lambda folder: make.write_tiny_llama(folder / "x.gguf", name=None, file_type=None, chat_template=None),
    "vocabulary": lambda folder: make.write_vocabulary_heavy(folder / "v.gguf", tokens=3000, merges=5000),
    "small": lambda folder: make.small_model(folder / "small-Q4_K.gguf", tensor_type=12),
    "aligned": aligned,
    "types": every_type,
    "origin": with_origin,
    **{
        f"architecture {name}": lambda folder, name=name: write_model(folder / f"{name}-F16.gguf", name)
        for name in ARCHITECTURES
    },
}


def projector(folder: Path) -> Path:
    path = folder / "mmproj-Tiny-F16.gguf"
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name("Tiny Vision")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.GEMMA3)
    writer.add_vision_projection_dim(256)
    writer.add_tensor("v.blk.0.attn_q.weight", np.zeros((64, 64), dtype=np.float16))
    writer.add_tensor("mm.input_projection.weight", np.zeros((64, 256), dtype=np.float16))
    make.finish(writer)
    return path


def adapter(folder: Path) -> Path:
    path = folder / "lora-f32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((8, 256), dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.zeros((256, 8), dtype=np.float32))
    make.finish(writer)
    return path


def imatrix(folder: Path) -> Path:
    path = folder / "imatrix.gguf"
    writer = gguf.GGUFWriter(path, "")
    # llama-imatrix writes no architecture, but some versions of the package would.
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 10)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.zeros((1, 256), dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.zeros((1, 1), dtype=np.float32))
    make.finish(writer)
    return path


def vocabulary(folder: Path) -> Path:
    path = folder / "ggml-vocab-tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    make.finish(writer)
    return path


COMPANIONS: dict[str, Callable[[Path], Path]] = {
    "mmproj": projector,
    "adapter": adapter,
    "imatrix": imatrix,
    "vocab": vocabulary,
}


def check_header(path: Path) -> gguf.GGUFReader:
    header = read_header(str(path))
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.version == reader.fields["GGUF.version"].contents()
    assert header.alignment == reader.alignment
    assert header.data_offset == reader.data_offset
    assert header.metadata.keys() | header.array_lengths.keys() == fields.keys()
    for name, field in fields.items():
        value = field.contents()
        if field.types[0] != gguf.GGUFValueType.ARRAY:
            assert header.metadata[name] == value, name
            assert type(header.metadata[name]) is type(value), name
            continue
        assert header.array_lengths[name] == len(value), name
        is_kept = field.types[-1] != gguf.GGUFValueType.STRING and len(value) <= MAX_KEPT_ELEMENTS
        assert header.metadata.get(name) == (tuple(value) if is_kept else None), name
    assert len(header.tensors) == len(reader.tensors)
    for tensor, expected in zip(header.tensors, reader.tensors, strict=True):
        assert tensor.name == expected.name
        assert tensor.shape == tuple(expected.shape.tolist())
        assert tensor.type == expected.tensor_type
        assert tensor.elements == expected.n_elements
        assert tensor.n_bytes == expected.n_bytes
        assert header.data_offset + tensor.offset == expected.data_offset
    ends = [tensor.data_offset + tensor.n_bytes for tensor in reader.tensors]
    assert header.data_end == max(ends, default=header.data_end)
    return reader


def check_record(paths: list[Path], readers: list[gguf.GGUFReader]) -> None:
    files = [SourceFile(str(path), path.stat().st_size, 1, 2) for path in paths]
    record = describe(files, [read_header(str(path)) for path in paths])
    first = readers[0]
    tensors = [tensor for reader in readers for tensor in reader.tensors]

    def value(key: str) -> Any:
        field = first.get_field(key)
        return None if field is None else field.contents()

    architecture = value("general.architecture")
    parameters = sum(int(tensor.n_elements) for tensor in tensors)
    template = value("tokenizer.chat_template")
    heads = uniform(value(f"{architecture}.attention.head_count") or 0)
    heads_kv = value(f"{architecture}.attention.head_count_kv")
    expected = {
        "architecture": architecture,
        "name": value("general.name"),
        "size_label": value("general.size_label"),
        "license": value("general.license"),
        "context_length": value(f"{architecture}.context_length"),
        "embedding_length": value(f"{architecture}.embedding_length"),
        "block_count": value(f"{architecture}.block_count"),
        "head_count": heads,
        "head_count_kv": heads if heads_kv is None else uniform(heads_kv),
        "expert_count": value(f"{architecture}.expert_count") or 0,
        "expert_used_count": value(f"{architecture}.expert_used_count") or 0,
        "sliding_window": value(f"{architecture}.attention.sliding_window") or 0,
        "tokenizer": value("tokenizer.ggml.model"),
        "chat_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "parameter_count": parameters,
        "bits_per_weight": round(sum(int(tensor.n_bytes) for tensor in tensors) * 8 / parameters, 2),
        "size_bytes": sum(path.stat().st_size for path in paths),
        "shards": len(paths),
        "base_model": value("general.base_model.0.repo_url"),
        "source": value("general.repo_url"),
        # No test file is a reranker, and only bert has embeddings.
        "kind": "embedding" if architecture == "bert" else "model",
        # A file whose weights are mostly not quantised has no quantization to compare.
        "tier": tier_of(tensors) or record["tier"],
    }
    assert {key: record[key] for key in expected} == expected


def tier_of(tensors: list[Any]) -> str | None:
    """The tier of the most frequent weight type, which these files have in their names."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.tensor_type.name
        weights[name] = weights.get(name, 0) + int(tensor.n_elements)
    return TIERS.get(max(weights, key=lambda name: weights[name]))


def uniform(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return value if len(set(value)) > 1 else value[0]


@pytest.mark.parametrize("kind", COMPANIONS)
def test_companion_matches_gguf_package(kind: str, tmp_path: Path) -> None:
    path = COMPANIONS[kind](tmp_path)
    reader = check_header(path)
    record = describe([SourceFile(str(path), path.stat().st_size, 1, 2)], [read_header(str(path))])

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    width = value("clip.vision.projection_dim") if kind == "mmproj" else value("llama.embedding_length")
    expected = {
        "kind": kind,
        "architecture": value("general.architecture"),
        "name": value("general.name"),
        "size_bytes": path.stat().st_size,
        "parameter_count": sum(int(tensor.n_elements) for tensor in reader.tensors),
        "embedding_length": width,
    }
    assert {key: record[key] for key in expected} == expected


@pytest.mark.parametrize("name", FILES)
def test_header_and_record_match_gguf_package(name: str, tmp_path: Path) -> None:
    path = FILES[name](tmp_path)
    check_record([path], [check_header(path)])


def test_shards_match_gguf_package(tmp_path: Path) -> None:
    make.write_tiny_llama(tmp_path / "tiny-F16.gguf", split_max_tensors=8)
    paths = sorted(tmp_path.glob("*.gguf"))
    assert len(paths) == 3
    check_record(paths, [check_header(path) for path in paths])


@pytest.mark.skipif(not BIN_DIR, reason="MAGI_LLAMA_BIN_DIR is not set")
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_quantised_matches_gguf_package(quantization: str, tmp_path: Path) -> None:
    path = quantised(quantization)(tmp_path)
    check_record([path], [check_header(path)])
    files = [SourceFile(str(path), 1, 1, 1)]
    record = describe(files, [read_header(str(path))])
    assert record["quantization"] == quantization
    assert record["warnings"] == []
    # llama-quantize writes the type into general.file_type: a neutral name gives the same result.
    unnamed = describe([SourceFile("/models/x.gguf", 1, 1, 1)], [read_header(str(path))])
    assert unnamed["quantization"] == quantization
