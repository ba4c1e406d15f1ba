# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory estimate against worked values. test_memory_truth.py compares it with a real llama-server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.errors import EstimateError
from ansible_collections.magi.llama.plugins.module_utils._models.memory_shape import memory_shape
from ansible_collections.magi.llama.plugins.module_utils._plan.memory import (
    GPU_CONTEXT_BYTES,
    GPU_EXPERTS_BYTES,
    GPU_RUNTIME_BYTES,
    computes_on_cpu,
    estimate,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.memory_flags import uncounted_warnings

MIB = 1024 * 1024
GIB = 1024 * MIB
F16, Q4_0, Q6_K = 1, 2, 14


@dataclass(frozen=True)
class Tensor:
    name: str
    n_bytes: int
    shape: tuple[int, ...] = (1, 1)
    type: int = F16


def shape_of(architecture: str, tensors: tuple[Tensor, ...] = (), tokens: int = 32000, **keys: Any) -> dict[str, Any]:
    """A model's shape from its keys, dots as double underscores."""
    metadata = {"general.architecture": architecture}
    metadata.update({f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()})
    shape = memory_shape(metadata, {"tokenizer.ggml.tokens": tokens}, tensors)
    assert json.loads(json.dumps(shape)) == shape, "the registry stores it as JSON"
    return shape


LLAMA_3_8B: dict[str, Any] = {
    "block_count": 32,
    "context_length": 8192,
    "embedding_length": 4096,
    "attention__head_count": 32,
    "attention__head_count_kv": 8,
}
GEMMA_3_27B: dict[str, Any] = {
    "block_count": 62,
    "context_length": 131072,
    "embedding_length": 5376,
    "attention__head_count": 32,
    "attention__head_count_kv": 16,
    "attention__key_length": 128,
    "attention__value_length": 128,
    "attention__sliding_window": 1024,
}
DEEPSEEK_V3: dict[str, Any] = {
    "block_count": 61,
    "context_length": 163840,
    "embedding_length": 7168,
    "attention__head_count": 128,
    "attention__head_count_kv": 1,
    "attention__kv_lora_rank": 512,
    "attention__key_length": 576,
    "attention__value_length": 512,
    "attention__key_length_mla": 192,
    "attention__value_length_mla": 128,
}


@pytest.mark.parametrize(
    ("architecture", "keys", "settings", "gib", "wrong"),
    [
        pytest.param("llama", LLAMA_3_8B, {"ctx_size": 8192}, 1.00, (0.50, 4.0), id="Llama-3-8B"),
        pytest.param(
            "llama",
            LLAMA_3_8B,
            {"ctx_size": 8192, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
            0.53,
            (1.0,),
            id="Llama-3-8B-q8_0",
        ),
        pytest.param(
            "gemma3",
            GEMMA_3_27B,
            {"ctx_size": 32768, "parallel": 4, "kv_unified": True},
            4.33,
            (15.5,),
            id="Gemma-3-27B-4-slots",
        ),
        pytest.param("gemma3", GEMMA_3_27B, {"ctx_size": 32768, "parallel": 1}, 3.11, (15.5,), id="Gemma-3-27B-1-slot"),
        pytest.param(
            "deepseek2", DEEPSEEK_V3, {"ctx_size": 32768, "parallel": 1}, 2.14, (152.5, 4.29), id="DeepSeek-V3"
        ),
    ],
)
def test_kv_cache_of_known_models_is_exact(
    architecture: str, keys: dict[str, Any], settings: dict[str, Any], gib: float, wrong: tuple[float, ...]
) -> None:
    result = estimate(shape_of(architecture, **keys), settings)
    assert round(result["kv_bytes"] / GIB, 2) == gib
    assert all(abs(result["kv_bytes"] / GIB - answer) > 0.2 for answer in wrong)
    assert "kv_bytes" not in result["estimates"]


def test_kv_cache_avoids_common_mistakes() -> None:
    settings = {"ctx_size": 8192, "parallel": 1}
    assert estimate(shape_of("llama", **{**LLAMA_3_8B, "block_count": 16}), settings)["kv_bytes"] == 0.5 * GIB
    assert (
        estimate(shape_of("llama", **{**LLAMA_3_8B, "attention__head_count_kv": 32}), settings)["kv_bytes"] == 4 * GIB
    )
    settings = {"ctx_size": 32768, "parallel": 1}
    assert estimate(shape_of("llama", **GEMMA_3_27B), settings)["kv_bytes"] == 15.5 * GIB
    assert estimate(shape_of("gemma3", **GEMMA_3_27B), {**settings, "swa_full": True})["kv_bytes"] == 15.5 * GIB
    plain = {"attention__head_count_kv": 128, "attention__key_length": 192, "attention__value_length": 128}
    plain.update({"attention__key_length_mla": 0, "attention__value_length_mla": 0})
    assert estimate(shape_of("deepseek2", **{**DEEPSEEK_V3, **plain}), settings)["kv_bytes"] == 152.5 * GIB


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("f32", 32),
        ("f16", 16),
        ("F16", 16),
        ("bf16", 16),
        ("q8_0", 8.5),
        ("q5_1", 6),
        ("q5_0", 5.5),
        ("q4_1", 5),
        ("q4_0", 4.5),
        ("iq4_nl", 4.5),
    ],
)
def test_cache_type_has_its_bits(name: str, bits: float) -> None:
    shape = shape_of("llama", **LLAMA_3_8B)
    both = estimate(shape, {"ctx_size": 8192, "cache_type_k": name, "cache_type_v": name})["kv_bytes"]
    assert both == GIB * bits / 16
    assert estimate(shape, {"ctx_size": 8192, "cache_type_k": name})["kv_bytes"] == GIB * (bits + 16) / 32


@pytest.mark.parametrize(
    ("settings", "cells", "slot_context"),
    [
        # The default is four slots, which share the context.
        ({}, 8192, 8192),
        ({"ctx_size": 0}, 8192, 8192),
        ({"ctx_size": 4096}, 4096, 4096),
        ({"ctx_size": "4096", "parallel": "auto"}, 4096, 4096),
        ({"ctx_size": 4096, "parallel": -1, "kv_unified": False}, 4096, 4096),
        # An explicit number of slots divides the context, unless the cache is unified.
        ({"ctx_size": 4096, "parallel": 1}, 4096, 4096),
        ({"ctx_size": 4096, "parallel": 4}, 4096, 1024),
        ({"ctx_size": 4096, "parallel": 4, "kv_unified": True}, 4096, 4096),
        ({"ctx_size": 4096, "parallel": 4, "no_kv_unified": True}, 4096, 1024),
        # By default each slot gets the training context, or its share of it if nothing is fitted.
        ({"parallel": 4}, 4 * 8192, 8192),
        ({"parallel": 4, "ctx_size": 0}, 4 * 8192, 8192),
        ({"parallel": 4, "fit": "off"}, 8192, 2048),
        ({"parallel": 4, "kv_unified": True}, 8192, 8192),
        # Caches are padded to 256 cells: first the total, then each slot's part.
        ({"ctx_size": 1000, "parallel": 1}, 1024, 1024),
        ({"ctx_size": 1000, "parallel": 3}, 1536, 512),
        ({"ctx_size": 1, "parallel": 2}, 512, 256),
        # A slot never gets more than the model was trained on.
        ({"ctx_size": 32768, "parallel": 2}, 32768, 8192),
        ({"kv_unified_per_slot": 1000}, 4096, 1000),
        ({"kv_unified_per_slot": 1000, "ctx_size": 2048}, 2048, 1000),
        ({"kv_unified_per_slot": 1000, "ctx_size": 0}, 8192, 1000),
    ],
)
def test_slots_share_the_context(settings: dict[str, Any], cells: int, slot_context: int) -> None:
    result = estimate(shape_of("llama", **LLAMA_3_8B), settings)
    assert result["kv_bytes"] == cells * 128 * 1024
    assert result["slot_context"] == slot_context


def test_slots_of_older_builds_share_training_context() -> None:
    shape = shape_of("llama", **LLAMA_3_8B)
    assert estimate(shape, {"parallel": 4}, build=9305)["slot_context"] == 2048
    assert estimate(shape, {"parallel": 4}, build=11669)["slot_context"] == 8192


def layers_with(shape: dict[str, Any], key: str) -> list[int]:
    return [layer for layer, kind in enumerate(shape["layers"]) if shape["kinds"][kind].get(key)]


ATTENTION: dict[str, Any] = {
    "context_length": 4096,
    "embedding_length": 256,
    "attention__head_count": 4,
    "attention__head_count_kv": 2,
}


@pytest.mark.parametrize(
    ("architecture", "layers", "keys", "windowed", "window"),
    [
        ("gemma2", 6, {}, [0, 2, 4], 4096),
        ("gemma2", 4, {"attention__sliding_window": 512}, [0, 2], 512),
        ("gemma3", 7, {"attention__sliding_window": 512}, [0, 1, 2, 3, 4, 6], 512),
        ("gemma3", 7, {}, [], 0),
        ("gemma3", 4, {"attention__sliding_window": 512, "attention__sliding_window_pattern": 2}, [0, 2], 512),
        ("gemma3n", 6, {"attention__sliding_window": 512}, [0, 1, 2, 3, 5], 512),
        (
            "gemma4",
            4,
            {"attention__sliding_window": 512, "attention__sliding_window_pattern": (True, False, False, True)},
            [0, 3],
            512,
        ),
        ("gpt-oss", 4, {"attention__sliding_window": 128}, [0, 2], 128),
        ("cohere2", 5, {"attention__sliding_window": 4096}, [0, 1, 2, 4], 4096),
        ("cohere2moe", 5, {"attention__sliding_window": 4096}, [1, 2, 3], 4096),
        ("llama4", 5, {}, [0, 1, 2, 4], 8192),
        ("llama4", 5, {"attention__sliding_window": 1024}, [0, 1, 2, 4], 8192),
        ("llama4", 5, {"attention__sliding_window": 0}, [], 0),
        ("smallthinker", 5, {"attention__sliding_window": 1024}, [1, 2, 3], 4096),
        ("smallthinker", 5, {}, [], 0),
        ("olmo2", 5, {"attention__sliding_window": 4096}, [0, 1, 2, 4], 4096),
        ("olmo2", 5, {}, [], 0),
        # Windows that llama.cpp ignores.
        ("phi3", 4, {"attention__sliding_window": 2048}, [], 0),
        ("llama", 4, {"attention__sliding_window": 2048}, [], 0),
        ("qwen2", 4, {"attention__sliding_window": 2048}, [], 0),
        ("exaone4", 4, {"attention__sliding_window": 2048}, [], 0),
        # A layer for multi-token prediction is not counted.
        ("exaone-moe", 5, {"attention__sliding_window": 128, "nextn_predict_layers": 1}, [0, 1, 2], 128),
    ],
)
def test_sliding_windows_are_found(
    architecture: str, layers: int, keys: dict[str, Any], windowed: list[int], window: int
) -> None:
    shape = shape_of(architecture, block_count=layers, **ATTENTION, **keys)
    assert layers_with(shape, "window") == windowed
    assert {kind["window"] for kind in shape["kinds"] if "window" in kind} == ({window} if windowed else set())


def test_windowed_cache_has_window_plus_batch() -> None:
    shape = shape_of("gpt-oss", block_count=2, attention__sliding_window=128, **{**ATTENTION, "context_length": 65536})
    row = 2 * 2 * 64 * 2

    def cells(**settings: Any) -> tuple[int, int]:
        whole = estimate(shape, {"ctx_size": 16384, "swa_full": True, **settings})["kv_bytes"]
        return whole // row // 2, estimate(shape, {"ctx_size": 16384, **settings})[
            "kv_bytes"
        ] // row - whole // row // 2

    assert cells(parallel=1) == (16384, 768)
    assert cells(parallel=4) == (16384, 4 * 768)
    assert cells(parallel=4, kv_unified=True) == (16384, 1024)
    assert cells(parallel=1, ubatch_size=2048) == (16384, 2304)
    assert cells(parallel=1, ctx_size=512) == (512, 512)


def test_heads_per_layer_are_used() -> None:
    keys = {**ATTENTION, "attention__head_count": (4, 8, 8), "attention__head_count_kv": (4, 0, 2)}
    shape = shape_of("openelm", block_count=3, **keys)
    assert estimate(shape, {"ctx_size": 256, "parallel": 1})["kv_bytes"] == 256 * 2 * 64 * (4 + 0 + 2) * 2
    # Without flash attention all value rows have the width of the widest.
    result = estimate(shape, {"ctx_size": 256, "parallel": 1, "flash_attn": "off"})
    assert result["kv_bytes"] == 256 * 64 * (4 + 2 + 4 + 4) * 2


def test_windowed_layers_use_their_own_heads() -> None:
    keys = {"attention__key_length": 512, "attention__value_length": 512}
    keys.update(
        {"attention__key_length_swa": 256, "attention__value_length_swa": 256, "attention__sliding_window": 512}
    )
    shape = shape_of(
        "gemma4",
        **{**ATTENTION, "attention__head_count_kv": (4, 1, 4, 1)},
        block_count=4,
        attention__sliding_window_pattern=(True, False, True, False),
        attention__shared_kv_layers=2,
        **keys,
    )
    # The last two layers use the keys and values of the first two.
    assert layers_with(shape, "k") == [0, 1]
    assert estimate(shape, {"ctx_size": 256, "parallel": 1})["kv_bytes"] == 256 * 2 * (4 * 256 + 512) * 2


@pytest.mark.parametrize(
    ("architecture", "keys", "state"),
    [
        ("mamba", {"ssm__conv_kernel": 4, "ssm__inner_size": 1536, "ssm__state_size": 16}, 3 * 1536 + 16 * 1536),
        (
            "mamba2",
            {"ssm__conv_kernel": 4, "ssm__inner_size": 1536, "ssm__state_size": 128, "ssm__group_count": 1},
            3 * (1536 + 2 * 128) + 128 * 1536,
        ),
        ("rwkv6", {"embedding_length": 2048, "wkv__head_size": 64}, 2048 * (2 + 64)),
        ("rwkv6qwen2", {"embedding_length": 2048, "wkv__head_size": 64, "token_shift_count": 1}, 2048 * (1 + 64)),
        ("rwkv7", {"embedding_length": 768, "wkv__head_size": 64}, 768 * (2 + 64)),
    ],
)
def test_recurrent_state_is_exact(architecture: str, keys: dict[str, Any], state: int) -> None:
    keys = {"context_length": 4096, "embedding_length": 768, **keys}
    shape = shape_of(architecture, block_count=3, attention__head_count=0, **keys)
    for slots in (1, 4):
        result = estimate(shape, {"parallel": slots})
        assert result["kv_bytes"] == 0
        # The state does not grow with the context.
        assert result["recurrent_bytes"] == slots * 3 * state * 4
        assert estimate(shape, {"parallel": slots, "ctx_size": 512})["recurrent_bytes"] == result["recurrent_bytes"]


SSM: dict[str, Any] = {"ssm__conv_kernel": 4, "ssm__inner_size": 512, "ssm__state_size": 16, "ssm__group_count": 1}


@pytest.mark.parametrize(
    ("architecture", "keys", "attending", "recurrent"),
    [
        ("jamba", {"attention__head_count_kv": (0, 0, 2, 0)}, [2], [0, 1, 3]),
        ("granitehybrid", {"attention__head_count_kv": (0, 2, 0, 0)}, [1], [0, 2, 3]),
        ("lfm2", {"attention__head_count_kv": (0, 0, 2, 0), "shortconv__l_cache": 3}, [2], [0, 1, 3]),
        (
            "nemotron_h",
            {"attention__head_count_kv": (0, 0, 2, 0), "feed_forward_length": (0, 512, 0, 0)},
            [2],
            [0, 3],
        ),
        ("falcon-h1", {}, [0, 1, 2, 3], [0, 1, 2, 3]),
        ("qwen3next", {}, [3], [0, 1, 2]),
        ("qwen35moe", {"full_attention_interval": 2}, [1, 3], [0, 2]),
        ("qwen35", {"attention__recurrent_layers": (False, True, True, False)}, [0, 3], [1, 2]),
        # The last layer is for multi-token prediction: it has attention, although the interval would make it recurrent.
        ("qwen35", {"nextn_predict_layers": 1, "full_attention_interval": 3}, [2, 3], [0, 1]),
    ],
)
def test_hybrids_split_layers(
    architecture: str, keys: dict[str, Any], attending: list[int], recurrent: list[int]
) -> None:
    shape = shape_of(architecture, block_count=4, **{**ATTENTION, **SSM, **keys})
    assert layers_with(shape, "k") == attending
    assert layers_with(shape, "state") == recurrent


@pytest.mark.parametrize("architecture", ["bert", "nomic-bert", "modern-bert", "jina-bert-v3", "gemma-embedding"])
def test_encoders_have_no_cache(architecture: str) -> None:
    keys = {**ATTENTION, "attention__causal": False, "attention__sliding_window": 128}
    result = estimate(shape_of(architecture, block_count=4, **keys), {"ctx_size": 4096}, kind="embedding")
    assert (result["kv_bytes"], result["recurrent_bytes"], result["growth_bytes"]) == (0, 0, 0)
    assert result["compute_bytes"] > 0


def test_cache_not_exact_is_marked_as_estimate() -> None:
    assert "kv_bytes" in estimate(shape_of("deepseek4", block_count=4, **ATTENTION), {})["estimates"]
    indexed = shape_of("deepseek32", **DEEPSEEK_V3, attention__indexer__key_length=128)
    result = estimate(indexed, {"ctx_size": 32768, "parallel": 1})
    assert result["kv_bytes"] == 61 * 32768 * (576 + 128) * 2
    assert "kv_bytes" not in result["estimates"]


def moe_tensors(layers: int, *, tied: bool = False, embedding_type: int = F16) -> tuple[Tensor, ...]:
    blocks = [
        Tensor(f"blk.{layer}.{name}.weight", size)
        for layer in range(layers)
        for name, size in (("attn_q", 10 * MIB), ("ffn_up_exps", 100 * MIB), ("ffn_gate_inp", MIB))
    ]
    ends = [Tensor("token_embd.weight", 50 * MIB, type=embedding_type), Tensor("output_norm.weight", MIB)]
    return (*ends, *([] if tied else [Tensor("output.weight", 60 * MIB)]), *blocks)


MOE: dict[str, Any] = {"block_count": 4, "expert_count": 8, "expert_used_count": 2, **ATTENTION}


def test_weights_are_the_sum_of_tensors() -> None:
    assert estimate(shape_of("qwen3moe", moe_tensors(4), **MOE), {})["weights_bytes"] == (50 + 1 + 60 + 4 * 111) * MIB


def test_prediction_layers_are_loaded_for_speculation_only() -> None:
    shape = shape_of("glm4moe", moe_tensors(4), **MOE, nextn_predict_layers=1)
    settings = {"ctx_size": 256, "parallel": 1, "cache_type_k": "q8_0"}
    without, predicting = (estimate(shape, {**settings, "spec_type": kind}) for kind in ("none", "draft-mtp"))
    assert without["weights_bytes"] == (50 + 1 + 60 + 3 * 111) * MIB
    assert predicting["weights_bytes"] == (50 + 1 + 60 + 4 * 111) * MIB
    assert without["kv_bytes"] == 256 * 3 * 2 * 64 * (2 + 34 / 32)
    # Their cache has its own types.
    assert predicting["kv_bytes"] - without["kv_bytes"] == 256 * 2 * 64 * (2 + 2)
    assert predicting["compute_bytes"] > without["compute_bytes"]


def test_drafts_of_recurrent_models_need_a_state_each() -> None:
    for architecture, times in (("qwen35", 4), ("qwen3next", 1)):
        shape = shape_of(architecture, block_count=4, **ATTENTION, **SSM)
        without = estimate(shape, {"parallel": 2})["recurrent_bytes"]
        assert estimate(shape, {"parallel": 2, "spec_type": "draft-mtp"})["recurrent_bytes"] == times * without
        settings = {"parallel": 2, "spec_type": "ngram-simple", "spec_draft_n_max": 8}
        assert estimate(shape, settings)["recurrent_bytes"] == without


@pytest.mark.parametrize("flag", ["mmproj", "lora", "spec_draft_model", "override_tensor"])
def test_flags_without_estimate_are_reported(flag: str) -> None:
    shape = shape_of("llama", **LLAMA_3_8B)
    assert "total_bytes" not in estimate(shape, {flag: None})["estimates"]
    assert "total_bytes" in estimate(shape, {flag: "file"})["estimates"]


@pytest.mark.parametrize(
    ("embedding_type", "settings", "gpus", "mib"),
    [
        (Q6_K, {}, 0, 50),
        # Repacked for the output, as for the input.
        (Q4_0, {}, 0, 100),
        (Q4_0, {"repack": False}, 0, 50),
        (Q4_0, {"no_repack": True}, 0, 50),
        # On the GPU for the output, on the host for the input.
        (Q6_K, {}, 1, 100),
        (Q6_K, {"n_gpu_layers": 0}, 1, 50),
    ],
)
def test_tied_embeddings_are_counted_for_output(
    embedding_type: int, settings: dict[str, Any], gpus: int, mib: int
) -> None:
    shape = shape_of("qwen3moe", moe_tensors(4, tied=True, embedding_type=embedding_type), **MOE)
    assert estimate(shape, settings, gpus=gpus)["weights_bytes"] == (mib + 1 + 4 * 111) * MIB


@pytest.mark.parametrize(
    ("settings", "named", "expected"),
    [
        ({}, [], set()),
        ({"n_cpu_ffn": 0, "lazy_mode": "off"}, [], set()),
        ({"lazy_mode": "auto"}, [], set()),
        ({"lazy_mode": "on"}, ["lazy_mode"], {"total_bytes"}),
        ({"n_cpu_ffn": 3, "lazy_mode": "on"}, ["n_cpu_ffn", "lazy_mode"], {"total_bytes", "vram_bytes"}),
    ],
)
def test_flags_that_are_not_counted_are_named(settings: dict[str, Any], named: list[str], expected: set[str]) -> None:
    shape = shape_of("qwen3moe", moe_tensors(4), **MOE)
    assert set(estimate(shape, settings, gpus=1)["estimates"]) & {"total_bytes", "vram_bytes"} == expected
    assert [warning.split()[0] for warning in uncounted_warnings(settings)] == named
    assert computes_on_cpu(shape, settings, 1) == ("n_cpu_ffn" in named)


def test_moe_cache_is_taken_besides_the_experts_in_ram() -> None:
    shape = shape_of("qwen3moe", moe_tensors(4), **MOE)
    without, cached = (estimate(shape, {"cpu_moe": True, "moe_cache_mib": size}, gpus=1) for size in (0, 50))
    assert (cached["ram_bytes"], cached["vram_bytes"]) == (without["ram_bytes"], without["vram_bytes"] + 50 * MIB)


KV = 4096 * 2 * 2 * 64 * 2


@pytest.mark.parametrize(
    ("settings", "vram"),
    [
        ({}, 61 * MIB + 4 * (111 * MIB + KV)),
        ({"n_gpu_layers": "all"}, 61 * MIB + 4 * (111 * MIB + KV)),
        ({"gpu_layers": 99}, 61 * MIB + 4 * (111 * MIB + KV)),
        ({"n_gpu_layers": -1}, 61 * MIB + 4 * (111 * MIB + KV)),
        # The output leaves the GPU first, then the layers from the end.
        ({"n_gpu_layers": 1}, 61 * MIB),
        ({"n_gpu_layers": 3}, 61 * MIB + 2 * (111 * MIB + KV)),
        ({"n_gpu_layers": 0}, 0),
        ({"cpu_moe": True}, 61 * MIB + 4 * (11 * MIB + KV)),
        ({"n_cpu_moe": 3}, 61 * MIB + 3 * (11 * MIB + KV) + 111 * MIB + KV),
        # Copies of experts in RAM, as many as there are.
        ({"n_cpu_moe": 3, "moe_cache_mib": 50}, 61 * MIB + 3 * (11 * MIB + KV) + 111 * MIB + KV + 50 * MIB),
        ({"n_cpu_moe": 1, "moe_cache_mib": 5000}, 61 * MIB + 4 * (111 * MIB + KV)),
        ({"moe_cache_mib": 50}, 61 * MIB + 4 * (111 * MIB + KV)),
        ({"no_kv_offload": True}, 61 * MIB + 4 * 111 * MIB),
        ({"kv_offload": False}, 61 * MIB + 4 * 111 * MIB),
    ],
)
def test_vram_by_gpu_layers(settings: dict[str, Any], vram: int) -> None:
    shape = shape_of("qwen3moe", moe_tensors(4), **MOE)
    result = estimate(shape, {"ctx_size": 4096, "parallel": 1, **settings}, gpus=2)
    # The copy of the largest part in RAM is in test_memory_on_gpu.py.
    least = GPU_CONTEXT_BYTES + GPU_EXPERTS_BYTES + result["compute_bytes"]
    assert least <= result["gpu_fixed_bytes"] <= least + 100 * MIB // 3
    assert result["vram_bytes"] == vram + 2 * result["gpu_fixed_bytes"]
    assert result["ram_bytes"] + result["vram_bytes"] == result["total_bytes"]
    without = estimate(shape, {"ctx_size": 4096, "parallel": 1, **settings})
    assert without["inputs_bytes"] == 0 < result["inputs_bytes"] < result["compute_bytes"]
    assert result["host_bytes"] - without["host_bytes"] == result["inputs_bytes"] + GPU_RUNTIME_BYTES


@pytest.mark.parametrize(("settings", "gpus"), [({}, 0), ({"device": "none"}, 2)])
def test_memory_without_gpu_is_all_ram(settings: dict[str, Any], gpus: int) -> None:
    result = estimate(shape_of("qwen3moe", moe_tensors(4), **MOE), settings, gpus=gpus)
    parts = ("weights_bytes", "kv_bytes", "recurrent_bytes", "compute_bytes", "host_bytes")
    assert result["vram_bytes"] == result["gpu_fixed_bytes"] == 0
    assert result["total_bytes"] == result["ram_bytes"] == sum(result[part] for part in parts)


def test_split_mode_none_uses_one_gpu() -> None:
    shape = shape_of("qwen3moe", moe_tensors(4), **MOE)
    one = estimate(shape, {"split_mode": "none"}, gpus=4)
    assert one["vram_bytes"] == estimate(shape, {}, gpus=1)["vram_bytes"]
    assert one["vram_bytes"] < estimate(shape, {}, gpus=4)["vram_bytes"]


def test_companion_files_count_on_their_device() -> None:
    shape = shape_of("llama", **LLAMA_3_8B)
    for settings, gpus, key in (
        ({}, 0, "ram_bytes"),
        ({}, 1, "vram_bytes"),
        ({"no_mmproj_offload": True}, 1, "ram_bytes"),
    ):
        without = estimate(shape, settings, gpus=gpus)
        result = estimate(shape, settings, gpus=gpus, companion_bytes=GIB)
        assert result["total_bytes"] - without["total_bytes"] == result[key] - without[key] == GIB


def test_logits_of_older_builds_are_for_every_token() -> None:
    keys = {**LLAMA_3_8B, "feed_forward_length": 14336}
    tensors = (
        Tensor("output.weight", MIB),
        Tensor("blk.0.ffn_up.weight", MIB, (4096, 14336)),
        Tensor("blk.0.ffn_gate.weight", MIB),
    )
    shape = shape_of("llama", tensors, tokens=128256, **keys)
    old, new, unknown = (estimate(shape, {}, build=build)["compute_bytes"] for build in (5000, 11669, None))
    assert old == unknown > 512 * 128256 * 4 > new
    for kind in ("embedding", "reranker"):
        assert (estimate(shape, {}, kind=kind, build=11669)["compute_bytes"] == old) == (kind == "embedding")
    # Embedding servers need every token's logits; pooled ones none.
    assert estimate(shape, {"embedding": True}, build=11669)["compute_bytes"] == old
    assert estimate(shape, {"embedding": True, "pooling": "mean"}, build=11669)["compute_bytes"] <= new


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ({"ubatch_size": 256}, {"ubatch_size": 512}),
        ({"ctx_size": 4096}, {"ctx_size": 8192}),
        ({"flash_attn": "on"}, {"flash_attn": "off"}),
        ({"flash_attn": "auto"}, {"flash_attn": False}),
    ],
)
def test_compute_buffer_grows_with_setting(smaller: dict[str, Any], larger: dict[str, Any]) -> None:
    shape = shape_of("llama", **LLAMA_3_8B)
    assert (
        estimate(shape, smaller, build=11669)["compute_bytes"] < estimate(shape, larger, build=11669)["compute_bytes"]
    )


@pytest.mark.parametrize(
    ("architecture", "keys", "settings", "growth"),
    [
        ("llama", LLAMA_3_8B, {}, 8 * GIB),
        ("llama", LLAMA_3_8B, {"cache_ram": 512}, 512 * MIB),
        ("llama", LLAMA_3_8B, {"cache_ram": 0}, 0),
        # Without a limit: the context of each slot once.
        ("llama", LLAMA_3_8B, {"cache_ram": -1, "parallel": 2}, 2 * GIB),
        # Checkpoints of the windowed caches only: 52 layers, one window each, 32 for each slot.
        (
            "gemma3",
            GEMMA_3_27B,
            {"cache_ram": 0, "ctx_size": 32768, "parallel": 1},
            32 * 52 * 1024 * 2 * 16 * 128 * 2,
        ),
        (
            "gemma3",
            GEMMA_3_27B,
            {"cache_ram": 0, "ctx_size": 32768, "parallel": 2, "ctx_checkpoints": 3},
            2 * 3 * 52 * 1024 * 2 * 16 * 128 * 2,
        ),
        ("gemma3", GEMMA_3_27B, {"cache_ram": 0, "ctx_checkpoints": 0}, 0),
        ("gemma3", GEMMA_3_27B, {"cache_ram": 0, "swa_full": True, "ctx_size": 4096}, 0),
        (
            "mamba",
            {"block_count": 2, "context_length": 4096, **SSM},
            {"cache_ram": 0},
            4 * 32 * 2 * (3 * 544 + 8192) * 4,
        ),
        ("llama", LLAMA_3_8B, {"embedding": True}, 0),
    ],
)
def test_growth_by_settings(architecture: str, keys: dict[str, Any], settings: dict[str, Any], growth: int) -> None:
    result = estimate(shape_of(architecture, **keys), settings)
    assert result["growth_bytes"] == growth
    assert result["total_bytes"] < 20 * GIB, "it is not part of the current need"


def test_growth_of_small_and_large_models() -> None:
    """A small model would need millions of tokens to fill a prompt cache of 8 GiB; a large one a few conversations."""
    small = {"block_count": 2, "embedding_length": 256, "attention__head_count": 4, "attention__head_count_kv": 2}
    settings = {"ctx_size": 4096, "parallel": 2}
    for keys, expected in ((small, 16 * 4096 * 2 * 2 * 128 * 2), (LLAMA_3_8B, 8 * GIB)):
        result = estimate(shape_of("llama", **{**keys, "context_length": 4096}), settings)
        assert (result["growth_bytes"], result["expected_growth_bytes"]) == (8 * GIB, expected)
        assert "expected_growth_bytes" in result["estimates"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_type_k": "q3_k"}, "cache_type_k is 'q3_k', llama-server takes one of: f32, f16"),
        ({"ctx_size": "8k"}, "ctx_size is '8k': it must be a whole number."),
        ({"parallel": True}, "parallel is True: it must be a whole number."),
        ({"ubatch_size": 1.5}, "ubatch_size is 1.5: it must be a whole number."),
    ],
)
def test_settings_invalid_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EstimateError, match="^" + message.replace("(", r"\(")):
        estimate(shape_of("llama", **LLAMA_3_8B), settings)


@pytest.mark.parametrize(
    "keys",
    [
        {"block_count": -1},
        {"block_count": 1 << 20},
        {"block_count": "many"},
        {"embedding_length": float("nan")},
        {"embedding_length": float("inf")},
        {"attention__head_count_kv": (2, "x")},
        {"attention__key_length": 1 << 40},
    ],
)
def test_headers_with_invalid_sizes_have_no_shape(keys: dict[str, Any]) -> None:
    with pytest.raises(EstimateError):
        shape_of("llama", **{"block_count": 2, **ATTENTION, **keys})


@pytest.mark.parametrize("architecture", ["", "llama", "gemma3", "mamba", "jamba", "qwen3next", "bert", "unknown"])
def test_header_without_keys_still_has_estimate(architecture: str) -> None:
    for keys in (
        {},
        {"block_count": 2},
        {"block_count": 2, "full_attention_interval": 0, "attention__sliding_window": 1},
    ):
        result = estimate(shape_of(architecture, tokens=0, **keys), {})
        assert result["total_bytes"] > 0


def test_shape_is_small() -> None:
    tensors = tuple(
        Tensor(f"blk.{layer}.{name}.weight", MIB * (1 + layer % 2), (4096, 4096))
        for layer in range(62)
        for name in ("attn_q", "attn_k", "attn_v", "ffn_up", "ffn_gate", "ffn_down")
    )
    assert len(json.dumps(shape_of("gemma3", tensors, **GEMMA_3_27B))) < 1200


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, 0, True),
        ({}, 1, False),
        ({"n_gpu_layers": "auto"}, 1, False),
        ({"n_gpu_layers": "all"}, 2, False),
        ({"n_gpu_layers": 33}, 1, False),
        ({"n_gpu_layers": 20}, 1, True),
        ({"n_gpu_layers": 0}, 1, True),
        ({"device": "none"}, 1, True),
        ({"no_kv_offload": True}, 1, True),
    ],
)
def test_what_computes_on_the_cpu(settings: dict[str, Any], gpus: int, expected: bool) -> None:
    assert computes_on_cpu(shape_of("llama", **LLAMA_3_8B), settings, gpus) is expected
