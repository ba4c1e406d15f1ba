# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quantization and tier from a file's name, tensors and metadata."""

from __future__ import annotations

import re

import gguf
import pytest
from ansible_collections.magi.llama.plugins.module_utils._models import quantization
from ansible_collections.magi.llama.plugins.module_utils._models.gguf import Tensor
from ansible_collections.magi.llama.plugins.module_utils._models.quantization import (
    quantization_of,
    tier_of,
    tier_of_bits,
)

TYPES = {kind.name: kind.value for kind in gguf.GGMLQuantizationType}


def weights(kind: str = "F16", name: str = "token_embd.weight") -> tuple[Tensor, ...]:
    return (Tensor(name, (256, 64), TYPES[kind], 0),)


@pytest.mark.parametrize(
    ("name", "quantization", "tier"),
    [
        ("DeepSeek-R1-0528-Qwen3-8B-UD-Q4_K_XL", "UD-Q4_K_XL", "Q4"),
        ("Qwen3-8B-UD-IQ2_M", "UD-IQ2_M", "Q2"),
        ("model.i1-IQ2_XXS", "IQ2_XXS", "Q2"),
        ("ggml-model-q4_0", "Q4_0", "Q4"),
        ("llama-2-7b.Q5_K_S", "Q5_K_S", "Q5"),
        ("Q8_0-of-all-F16", "F16", "F16"),
        ("gpt-oss-20b-mxfp4", "MXFP4", "Q4"),
        ("GLM-NVFP4", "NVFP4", "Q4"),
        ("BitNet-TQ1_0", "TQ1_0", "Q1"),
        ("BitNet-TQ2_0", "TQ2_0", "Q2"),
        ("deepseek-IQ1_S", "IQ1_S", "Q1"),
        ("phi-4-bf16", "BF16", "F16"),
        ("phi-4-fp16", "F16", "F16"),
        ("phi-4-f32", "F32", "F32"),
        ("gemma-3-4b-it-q4_0_4_4", "Q4_0_4_4", "Q4"),
        ("mixtral_Q3_K_L", "Q3_K_L", "Q3"),
        ("mixtral Q6_K", "Q6_K", "Q6"),
        ("x-Q4_K_M-00001-of-00003", "Q4_K_M", "Q4"),
    ],
)
def test_quantization_is_read_from_file_name(name: str, quantization: str, tier: str) -> None:
    # One type cannot match every tier: warnings have a separate test.
    result = quantization_of(f"/models/{name}.gguf", {}, weights("F32" if tier == "F32" else "F16"))
    assert (result.name, result.tier) == (quantization, tier)


@pytest.mark.parametrize(
    ("name", "kind", "quantization"),
    [
        ("x-Q4_K_M-f16-embed", "Q4_K", "Q4_K_M"),
        ("x-Q4_K_M-f16-embed", "F16", "F16"),
        ("x-Q4_0-Q4_K_M", "Q4_K", "Q4_K_M"),
        ("x-Q8_0-F32", "Q4_K", "F32"),
    ],
)
def test_quantization_with_several_words_is_last_matching_tensors(name: str, kind: str, quantization: str) -> None:
    assert quantization_of(f"/models/{name}.gguf", {}, weights(kind)).name == quantization


@pytest.mark.parametrize("name", ["FooQ4_K_Mbar", "Qwen3-8B", "sq4_0", "Q9_0", "F161", "llama-3.1-8b-instruct"])
def test_quantization_like_words_are_ignored(name: str) -> None:
    assert quantization_of(f"/models/{name}.gguf", {"general.file_type": 15}, weights("Q4_K")).name == "Q4_K_M"


@pytest.mark.parametrize(
    ("name", "kind", "file_type", "quantization", "tier", "warning"),
    [
        ("x-Q4_K_M", "Q4_K", 15, "Q4_K_M", "Q4", None),
        ("x-Q4_K_M", "Q4_K", None, "Q4_K_M", "Q4", None),
        ("x-Q4_K_M", "Q4_K", 15 + 1024, "Q4_K_M", "Q4", None),
        ("x-UD-IQ2_M", "IQ2_S", 14, "UD-IQ2_M", "Q2", "the file name says UD-IQ2_M, general.file_type says Q4_K_S"),
        ("x-Q8_0", "Q4_K", 7, "Q8_0", "Q4", "the file name says Q8_0, the tensors measure 4.5 bits per weight"),
        ("x-F16", "Q8_0", 1, "F16", "Q8", "the file name says F16, the tensors measure 8.5 bits per weight"),
        ("x", "Q4_K", 15, "Q4_K_M", "Q4", None),
        ("x", "Q4_K", None, "Q4_K", "Q4", None),
        ("x", "Q4_K", 999, "Q4_K", "Q4", None),
        ("x", "F16", 15, "F16", "F16", "the tensors measure 16.0 bits per weight, general.file_type says Q4_K_M"),
        ("x", "F32", 0, "F32", "F32", None),
        ("x", "TQ1_0", None, "TQ1_0", "Q2", None),
    ],
)
def test_tier_mismatch_is_a_warning(
    name: str, kind: str, file_type: int | None, quantization: str, tier: str, warning: str | None
) -> None:
    metadata = {} if file_type is None else {"general.file_type": file_type}
    result = quantization_of(f"/models/{name}.gguf", metadata, weights(kind))
    assert (result.name, result.tier) == (quantization, tier)
    assert result.warnings == ([f"tier: {warning}"] if warning else [])


@pytest.mark.parametrize(
    ("bits", "tier"),
    [
        (2.99, "Q2"),
        (3.0, "Q3"),
        (3.99, "Q3"),
        (4.0, "Q4"),
        (5.19, "Q4"),
        (5.2, "Q5"),
        (6.0, "Q6"),
        (7.49, "Q6"),
        (7.5, "Q8"),
        (8.99, "Q8"),
        (9.0, "F16"),
        (16.0, "F16"),
        (32.0, "F32"),
    ],
)
def test_tier_of_bits(bits: float, tier: str) -> None:
    assert tier_of_bits(bits) == tier


def test_file_types_match_gguf_package() -> None:
    expected = {
        kind.value: re.sub(r"^(ALL|MOSTLY)_", "", kind.name)
        for kind in gguf.LlamaFileType
        if kind != gguf.LlamaFileType.GUESSED
    }
    # llama.cpp has one more by now; test_ggml_types.py holds that against llama-quantize.
    assert {**expected, 41: "Q2_0"} == quantization._FILE_TYPES
    assert {tier_of(name) for name in expected.values()} <= set(quantization.TIERS)
