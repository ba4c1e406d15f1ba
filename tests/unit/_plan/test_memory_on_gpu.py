# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The estimate against what nvidia-smi showed of llama-server (CUDA build 11434) on an NVIDIA H100 after prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._models.memory_shape import memory_shape
from ansible_collections.magi.llama.plugins.module_utils._plan.memory import estimate

MIB = 1024 * 1024
BUILD = 11434
Q4_K, Q6_K = 12, 14


@dataclass(frozen=True)
class Tensor:
    name: str
    n_bytes: int
    shape: tuple[int, ...]
    type: int = Q4_K


def q4_k(name: str, *shape: int) -> Tensor:
    elements = 1
    for size in shape:
        elements *= size
    return Tensor(f"{name}.weight", elements * 144 // 256, shape)


def llama_8b_tensors() -> Iterator[Tensor]:
    yield q4_k("token_embd", 4096, 128256)
    yield Tensor("output.weight", 4096 * 128256 * 210 // 256, (4096, 128256), Q6_K)
    for layer in range(32):
        yield q4_k(f"blk.{layer}.attn_q", 4096, 4096)
        yield q4_k(f"blk.{layer}.attn_k", 4096, 1024)
        yield q4_k(f"blk.{layer}.attn_v", 4096, 1024)
        yield q4_k(f"blk.{layer}.attn_output", 4096, 4096)
        yield q4_k(f"blk.{layer}.ffn_gate", 4096, 14336)
        yield q4_k(f"blk.{layer}.ffn_up", 4096, 14336)
        yield q4_k(f"blk.{layer}.ffn_down", 14336, 4096)


LLAMA_8B = memory_shape(
    {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.vocab_size": 128256,
    },
    {"tokenizer.ggml.tokens": 128256},
    tuple(llama_8b_tensors()),
)


FOUR = {"parallel": 4, "kv_unified": True}


@pytest.mark.parametrize(
    ("flags", "mib"),
    [
        ({"ctx_size": 4096, "parallel": 1}, 5388),
        ({"ctx_size": 8192, "parallel": 2}, 5900),
        ({"ctx_size": 32768, **FOUR}, 8980),
        ({"ctx_size": 32768, **FOUR, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 7132),
        ({"ctx_size": 32768, **FOUR, "flash_attn": "off"}, 11144),
        ({"ctx_size": 131072, "parallel": 1}, 21384),
        ({"ctx_size": 4096, "parallel": 1, "n_gpu_layers": 16}, 3154),
        ({"ctx_size": 4096, "parallel": 1, "n_gpu_layers": 0}, 754),
    ],
)
def test_vram_of_llama_8b_is_within_3_percent_of_an_h100(flags: dict[str, Any], mib: int) -> None:
    vram = estimate(LLAMA_8B, flags, gpus=1, build=BUILD)["vram_bytes"] / MIB
    assert vram == pytest.approx(mib, rel=0.03)


def gemma_4b_tensors() -> Iterator[Tensor]:
    yield Tensor("token_embd.weight", 2560 * 262144 * 210 // 256, (2560, 262144), Q6_K)
    for layer in range(34):
        yield q4_k(f"blk.{layer}.attn_q", 2560, 2048)
        yield q4_k(f"blk.{layer}.attn_k", 2560, 1024)
        yield q4_k(f"blk.{layer}.attn_v", 2560, 1024)
        yield q4_k(f"blk.{layer}.attn_output", 2048, 2560)
        yield q4_k(f"blk.{layer}.ffn_gate", 2560, 10240)
        yield q4_k(f"blk.{layer}.ffn_up", 2560, 10240)
        yield q4_k(f"blk.{layer}.ffn_down", 10240, 2560)


GEMMA_4B = memory_shape(
    {
        "general.architecture": "gemma3",
        "gemma3.block_count": 34,
        "gemma3.context_length": 131072,
        "gemma3.embedding_length": 2560,
        "gemma3.feed_forward_length": 10240,
        "gemma3.attention.head_count": 8,
        "gemma3.attention.head_count_kv": 4,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.sliding_window": 1024,
    },
    {"tokenizer.ggml.tokens": 262144},
    tuple(gemma_4b_tensors()),
)


@pytest.mark.parametrize(("swa_full", "mib"), [(False, 4278), (True, 7350)])
def test_vram_of_gemma_4b_is_within_3_percent_of_an_h100(swa_full: bool, mib: int) -> None:
    flags = {"ctx_size": 32768, "swa_full": swa_full, "parallel": 4}
    vram = estimate(GEMMA_4B, flags, gpus=1, build=BUILD)["vram_bytes"] / MIB
    assert vram == pytest.approx(mib, rel=0.03)


def experts_tensors(rest_mib: int) -> Iterator[Tensor]:
    """16 layers that have 4564 MiB of experts in all, and the rest."""
    yield q4_k("token_embd", 2048, 32000)
    yield q4_k("output", 2048, 32000)
    for layer in range(16):
        yield Tensor(f"blk.{layer}.attn_q.weight", rest_mib * MIB // 16, (2048, 2048))
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            yield Tensor(f"blk.{layer}.{name}.weight", 4564 * MIB // 48, (2048, 768, 128))


@pytest.mark.parametrize(("flags", "mib"), [({}, 5824), ({"cpu_moe": True}, 1344)])
def test_vram_of_128_experts_is_within_3_percent_of_an_h100(flags: dict[str, Any], mib: int) -> None:
    # Only what the experts and all else took is known of the model: 4564 MiB, and 565 without the runtime.
    shape = memory_shape(
        {
            "general.architecture": "qwen3moe",
            "qwen3moe.block_count": 16,
            "qwen3moe.context_length": 32768,
            "qwen3moe.embedding_length": 2048,
            "qwen3moe.expert_count": 128,
            "qwen3moe.expert_used_count": 8,
            "qwen3moe.attention.head_count": 16,
            "qwen3moe.attention.head_count_kv": 2,
            "qwen3moe.attention.key_length": 64,
            "qwen3moe.attention.value_length": 64,
        },
        {"tokenizer.ggml.tokens": 32000},
        tuple(experts_tensors(rest_mib=150)),
    )
    result = estimate(shape, {"ctx_size": 32768, **FOUR, **flags}, gpus=1, build=BUILD)
    vram = result["vram_bytes"] / MIB
    assert vram == pytest.approx(mib, rel=0.03)
