# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny models of random weights, of many architectures, that a real llama-server loads.

They are written with the gguf package. Their sizes are multiples of 256, so that K-quants are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

# A list of dimensions in ggml's order, the row length first.
Shape = tuple[int, ...]
TensorSpec = tuple[str, Shape, str]


@dataclass(frozen=True)
class Sizes:
    """Dimensions that all architectures share; each uses those that it needs."""

    layers: int = 4
    embedding: int = 256
    feed_forward: int = 512
    heads: int = 4
    heads_kv: int = 2
    vocabulary: int = 260
    context: int = 4096
    window: int = 256
    experts: int = 4
    tied: bool = False

    @property
    def head(self) -> int:
        return self.embedding // self.heads


@dataclass
class Model:
    """One architecture's keys (without its prefix) and tensors."""

    architecture: str
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: list[TensorSpec] = field(default_factory=list)
    wordpiece: bool = False

    def matrix(self, name: str, *shape: int) -> None:
        self.tensors.append((f"{name}.weight", shape, "f16"))

    def vector(self, name: str, *shape: int) -> None:
        self.tensors.append((name, shape, "f32"))

    def norms(self, *names: str, size: int) -> None:
        for name in names:
            self.vector(f"{name}.weight", size)

    def ends(self, sizes: Sizes, norm: str = "output_norm") -> None:
        self.matrix("token_embd", sizes.embedding, sizes.vocabulary)
        self.norms(norm, size=sizes.embedding)
        if not sizes.tied:
            self.matrix("output", sizes.embedding, sizes.vocabulary)

    def attention(self, block: str, sizes: Sizes, head: int | None = None, *, q_width: int = 1) -> None:
        head = head or sizes.head
        self.matrix(f"{block}.attn_q", sizes.embedding, head * sizes.heads * q_width)
        self.matrix(f"{block}.attn_k", sizes.embedding, head * sizes.heads_kv)
        self.matrix(f"{block}.attn_v", sizes.embedding, head * sizes.heads_kv)
        self.matrix(f"{block}.attn_output", head * sizes.heads, sizes.embedding)

    def feed_forward(self, block: str, sizes: Sizes) -> None:
        self.matrix(f"{block}.ffn_gate", sizes.embedding, sizes.feed_forward)
        self.matrix(f"{block}.ffn_up", sizes.embedding, sizes.feed_forward)
        self.matrix(f"{block}.ffn_down", sizes.feed_forward, sizes.embedding)

    def experts(self, block: str, sizes: Sizes, width: int) -> None:
        self.vector(f"{block}.ffn_gate_inp.weight", sizes.embedding, sizes.experts)
        self.matrix(f"{block}.ffn_gate_exps", sizes.embedding, width, sizes.experts)
        self.matrix(f"{block}.ffn_up_exps", sizes.embedding, width, sizes.experts)
        self.matrix(f"{block}.ffn_down_exps", width, sizes.embedding, sizes.experts)


def _blocks(sizes: Sizes) -> Iterator[str]:
    return (f"blk.{number}" for number in range(sizes.layers))


def _common(architecture: str, sizes: Sizes, **keys: Any) -> Model:
    base = {
        "block_count": sizes.layers,
        "context_length": sizes.context,
        "embedding_length": sizes.embedding,
        "feed_forward_length": sizes.feed_forward,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.heads_kv,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    return Model(architecture, {**base, **keys})


def _llama(sizes: Sizes) -> Model:
    model = _common("llama", sizes, **{"rope.dimension_count": sizes.head})
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.attention(block, sizes)
        model.feed_forward(block, sizes)
    return model


def _qwen2(sizes: Sizes) -> Model:
    model = _common("qwen2", sizes)
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.attention(block, sizes)
        model.vector(f"{block}.attn_q.bias", sizes.embedding)
        model.vector(f"{block}.attn_k.bias", sizes.head * sizes.heads_kv)
        model.vector(f"{block}.attn_v.bias", sizes.head * sizes.heads_kv)
        model.feed_forward(block, sizes)
    return model


def _qwen3(sizes: Sizes) -> Model:
    head = 2 * sizes.head
    model = _common("qwen3", sizes, **{"attention.key_length": head, "attention.value_length": head})
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.norms(f"{block}.attn_q_norm", f"{block}.attn_k_norm", size=head)
        model.attention(block, sizes, head)
        model.feed_forward(block, sizes)
    return model


def _qwen3moe(sizes: Sizes) -> Model:
    width = sizes.feed_forward // 2
    keys = {"expert_count": sizes.experts, "expert_used_count": 2, "expert_feed_forward_length": width}
    model = _common("qwen3moe", sizes, **keys)
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.norms(f"{block}.attn_q_norm", f"{block}.attn_k_norm", size=sizes.head)
        model.attention(block, sizes)
        model.experts(block, sizes, width)
    return model


def _gemma3(sizes: Sizes) -> Model:
    head = sizes.head
    keys = {
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.sliding_window": sizes.window,
        "rope.freq_base": 1e6,
    }
    model = _common("gemma3", sizes, **keys)
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.norms(f"{block}.post_attention_norm", f"{block}.post_ffw_norm", size=sizes.embedding)
        model.norms(f"{block}.attn_q_norm", f"{block}.attn_k_norm", size=head)
        model.attention(block, sizes)
        model.feed_forward(block, sizes)
    return model


def _gpt_oss(sizes: Sizes) -> Model:
    width = sizes.feed_forward // 2
    keys = {
        "expert_count": sizes.experts,
        "expert_used_count": 2,
        "expert_feed_forward_length": width,
        "attention.sliding_window": sizes.window // 2,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
    }
    model = _common("gpt-oss", sizes, **keys)
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", f"{block}.post_attention_norm", size=sizes.embedding)
        model.attention(block, sizes)
        model.vector(f"{block}.attn_q.bias", sizes.head * sizes.heads)
        model.vector(f"{block}.attn_k.bias", sizes.head * sizes.heads_kv)
        model.vector(f"{block}.attn_v.bias", sizes.head * sizes.heads_kv)
        model.vector(f"{block}.attn_output.bias", sizes.embedding)
        model.vector(f"{block}.attn_sinks.weight", sizes.heads)
        model.experts(block, sizes, width)
        model.vector(f"{block}.ffn_gate_inp.bias", sizes.experts)
        model.vector(f"{block}.ffn_gate_exps.bias", width, sizes.experts)
        model.vector(f"{block}.ffn_up_exps.bias", width, sizes.experts)
        model.vector(f"{block}.ffn_down_exps.bias", sizes.embedding, sizes.experts)
    return model


def _deepseek2(sizes: Sizes) -> Model:
    rank, rope, nope, q_rank = sizes.embedding // 2, 32, 32, sizes.embedding // 2
    width = sizes.feed_forward // 2
    keys = {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": q_rank,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": nope,
        "rope.dimension_count": rope,
        "expert_count": sizes.experts,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_feed_forward_length": width,
        "expert_weights_scale": 1.0,
        "leading_dense_block_count": 1,
        "vocab_size": sizes.vocabulary,
    }
    model = _common("deepseek2", sizes, **keys)
    model.ends(sizes)
    for number, block in enumerate(_blocks(sizes)):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.norms(f"{block}.attn_q_a_norm", size=q_rank)
        model.norms(f"{block}.attn_kv_a_norm", size=rank)
        model.matrix(f"{block}.attn_q_a", sizes.embedding, q_rank)
        model.matrix(f"{block}.attn_q_b", q_rank, sizes.heads * (nope + rope))
        model.matrix(f"{block}.attn_kv_a_mqa", sizes.embedding, rank + rope)
        model.matrix(f"{block}.attn_k_b", nope, rank, sizes.heads)
        model.matrix(f"{block}.attn_v_b", rank, nope, sizes.heads)
        model.matrix(f"{block}.attn_output", sizes.heads * nope, sizes.embedding)
        if number == 0:
            model.feed_forward(block, sizes)
            continue
        model.experts(block, sizes, width)
        model.matrix(f"{block}.ffn_gate_shexp", sizes.embedding, width)
        model.matrix(f"{block}.ffn_up_shexp", sizes.embedding, width)
        model.matrix(f"{block}.ffn_down_shexp", width, sizes.embedding)
    return model


_MAMBA = {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.time_step_rank": 16}


def _mamba_block(model: Model, block: str, sizes: Sizes, *, normed: bool) -> None:
    inner, state, rank = 2 * sizes.embedding, 16, 16
    model.matrix(f"{block}.ssm_in", sizes.embedding, 2 * inner)
    model.vector(f"{block}.ssm_conv1d.weight", 4, inner)
    model.vector(f"{block}.ssm_conv1d.bias", inner)
    model.matrix(f"{block}.ssm_x", inner, rank + 2 * state)
    model.vector(f"{block}.ssm_dt.weight", rank, inner)
    model.vector(f"{block}.ssm_dt.bias", inner)
    model.vector(f"{block}.ssm_a", state, inner)
    model.vector(f"{block}.ssm_d", inner)
    model.matrix(f"{block}.ssm_out", inner, sizes.embedding)
    if normed:
        model.norms(f"{block}.ssm_dt_norm", size=rank)
        model.norms(f"{block}.ssm_b_norm", f"{block}.ssm_c_norm", size=state)


def _mamba(sizes: Sizes) -> Model:
    model = _common("mamba", sizes, **{**_MAMBA, "ssm.inner_size": 2 * sizes.embedding})
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        model.keys[key] = 0
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", size=sizes.embedding)
        _mamba_block(model, block, sizes, normed=False)
    return model


def _jamba(sizes: Sizes) -> Model:
    # Every fourth layer has attention, the others are recurrent.
    heads_kv = [sizes.heads_kv if layer % 4 == 3 else 0 for layer in range(sizes.layers)]
    keys = {**_MAMBA, "ssm.inner_size": 2 * sizes.embedding, "attention.head_count_kv": heads_kv}
    model = _common("jamba", sizes, **keys)
    model.ends(sizes)
    for heads, block in zip(heads_kv, _blocks(sizes), strict=True):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        if heads:
            model.attention(block, sizes)
        else:
            _mamba_block(model, block, sizes, normed=True)
        model.feed_forward(block, sizes)
    return model


def _mamba2_block(model: Model, block: str, sizes: Sizes, inner: int, heads: int, state: int, groups: int) -> None:
    convolution = inner + 2 * groups * state
    model.matrix(f"{block}.ssm_in", sizes.embedding, inner + convolution + heads)
    model.vector(f"{block}.ssm_conv1d.weight", 4, convolution)
    model.vector(f"{block}.ssm_conv1d.bias", convolution)
    model.vector(f"{block}.ssm_dt.bias", heads)
    model.vector(f"{block}.ssm_a", 1, heads)
    model.vector(f"{block}.ssm_d", 1, heads)
    model.vector(f"{block}.ssm_norm.weight", inner // groups, groups)
    model.matrix(f"{block}.ssm_out", inner, sizes.embedding)


def _mamba2(sizes: Sizes) -> Model:
    inner, heads, state, groups = 2 * sizes.embedding, 8, 32, 1
    keys = {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": heads,
        "ssm.group_count": groups,
    }
    model = _common("mamba2", sizes, **keys)
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        model.keys[key] = 0
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", size=sizes.embedding)
        _mamba2_block(model, block, sizes, inner, heads, state, groups)
    return model


def _falcon_h1(sizes: Sizes) -> Model:
    # Every layer has both attention and a recurrent part.
    inner, heads, state, groups = 2 * sizes.embedding, 8, 32, 1
    keys = {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": heads,
        "ssm.group_count": groups,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
    }
    model = _common("falcon-h1", sizes, **keys)
    model.ends(sizes)
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", size=sizes.embedding)
        model.vector(f"{block}.ffn_norm", sizes.embedding)
        model.attention(block, sizes)
        _mamba2_block(model, block, sizes, inner, heads, state, groups)
        model.feed_forward(block, sizes)
    return model


def _lfm2(sizes: Sizes) -> Model:
    # Short convolutions, with attention in every second layer.
    heads_kv = [sizes.heads_kv if layer % 2 else 0 for layer in range(sizes.layers)]
    model = _common("lfm2", sizes, **{"shortconv.l_cache": 3, "attention.head_count_kv": heads_kv})
    model.ends(sizes, norm="token_embd_norm")
    for heads, block in zip(heads_kv, _blocks(sizes), strict=True):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.feed_forward(block, sizes)
        if heads:
            model.norms(f"{block}.attn_q_norm", f"{block}.attn_k_norm", size=sizes.head)
            model.attention(block, sizes)
        else:
            model.vector(f"{block}.shortconv.conv.weight", 3, sizes.embedding)
            model.matrix(f"{block}.shortconv.in_proj", sizes.embedding, 3 * sizes.embedding)
            model.matrix(f"{block}.shortconv.out_proj", sizes.embedding, sizes.embedding)
    return model


def _qwen3next(sizes: Sizes) -> Model:
    state, groups, ranks = 32, 2, 4
    key_width, value_width = state * groups, state * ranks
    width = sizes.feed_forward // 2
    keys = {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": value_width,
        "ssm.state_size": state,
        "ssm.time_step_rank": ranks,
        "ssm.group_count": groups,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
        "rope.dimension_count": sizes.head // 2,
        "expert_count": sizes.experts,
        "expert_used_count": 2,
        "expert_feed_forward_length": width,
        "expert_shared_feed_forward_length": width,
    }
    model = _common("qwen3next", sizes, **keys)
    model.ends(sizes)
    for number, block in enumerate(_blocks(sizes)):
        model.norms(f"{block}.attn_norm", f"{block}.post_attention_norm", size=sizes.embedding)
        if (number + 1) % 4 == 0:
            model.attention(block, sizes, q_width=2)
            model.norms(f"{block}.attn_q_norm", f"{block}.attn_k_norm", size=sizes.head)
        else:
            model.matrix(f"{block}.attn_qkv", sizes.embedding, 2 * key_width + value_width)
            model.matrix(f"{block}.attn_gate", sizes.embedding, value_width)
            model.vector(f"{block}.ssm_conv1d.weight", 4, 2 * key_width + value_width)
            model.vector(f"{block}.ssm_dt.bias", ranks)
            model.vector(f"{block}.ssm_a", ranks)
            model.matrix(f"{block}.ssm_ba", sizes.embedding, 2 * ranks)
            model.vector(f"{block}.ssm_norm.weight", state)
            model.matrix(f"{block}.ssm_out", value_width, sizes.embedding)
        model.experts(block, sizes, width)
        model.vector(f"{block}.ffn_gate_inp_shexp.weight", sizes.embedding)
        model.matrix(f"{block}.ffn_gate_shexp", sizes.embedding, width)
        model.matrix(f"{block}.ffn_up_shexp", sizes.embedding, width)
        model.matrix(f"{block}.ffn_down_shexp", width, sizes.embedding)
    return model


def _bert(sizes: Sizes) -> Model:
    keys = {
        "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False,
        "attention.head_count_kv": sizes.heads,
        "pooling_type": 1,
    }
    model = _common("bert", sizes, **keys)
    del model.keys["attention.layer_norm_rms_epsilon"]
    model.wordpiece = True
    model.matrix("token_embd", sizes.embedding, sizes.vocabulary)
    model.vector("token_types.weight", sizes.embedding, 2)
    model.vector("position_embd.weight", sizes.embedding, sizes.context)
    for suffix in ("weight", "bias"):
        model.vector(f"token_embd_norm.{suffix}", sizes.embedding)
    for block in _blocks(sizes):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.matrix(f"{block}.{name}", sizes.embedding, sizes.embedding)
            model.vector(f"{block}.{name}.bias", sizes.embedding)
        for name in ("attn_output_norm", "layer_output_norm"):
            model.vector(f"{block}.{name}.weight", sizes.embedding)
            model.vector(f"{block}.{name}.bias", sizes.embedding)
        model.matrix(f"{block}.ffn_up", sizes.embedding, sizes.feed_forward)
        model.vector(f"{block}.ffn_up.bias", sizes.feed_forward)
        model.matrix(f"{block}.ffn_down", sizes.feed_forward, sizes.embedding)
        model.vector(f"{block}.ffn_down.bias", sizes.embedding)
    return model


def _gemma2(sizes: Sizes) -> Model:
    # The file has neither pattern nor window: llama.cpp has them built in.
    model = _common("gemma2", sizes, **{"attention.key_length": sizes.head, "attention.value_length": sizes.head})
    model.ends(replace(sizes, tied=True))
    for block in _blocks(sizes):
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.norms(f"{block}.post_attention_norm", f"{block}.post_ffw_norm", size=sizes.embedding)
        model.attention(block, sizes)
        model.feed_forward(block, sizes)
    return model


def _gemma4(sizes: Sizes) -> Model:
    # Full layers have wider and fewer heads; the last three layers use the keys and values of earlier ones.
    sizes = replace(sizes, layers=6)
    full = [layer % 3 == 2 for layer in range(sizes.layers)]
    heads_kv = [1 if is_full else sizes.heads_kv for is_full in full]
    per_layer = 64
    keys = {
        "attention.head_count_kv": heads_kv,
        "attention.key_length": 2 * sizes.head,
        "attention.value_length": 2 * sizes.head,
        "attention.key_length_swa": sizes.head,
        "attention.value_length_swa": sizes.head,
        "attention.sliding_window": sizes.window,
        "attention.sliding_window_pattern": [not is_full for is_full in full],
        "attention.shared_kv_layers": 3,
        "rope.dimension_count_swa": sizes.head,
        "embedding_length_per_layer_input": per_layer,
    }
    model = _common("gemma4", sizes, **keys)
    model.ends(replace(sizes, tied=True))
    model.matrix("per_layer_token_embd", per_layer * sizes.layers, sizes.vocabulary)
    model.matrix("per_layer_model_proj", sizes.embedding, per_layer * sizes.layers)
    model.norms("per_layer_proj_norm", size=per_layer)
    model.vector("rope_freqs.weight", sizes.head)
    for is_full, heads, block in zip(full, heads_kv, _blocks(sizes), strict=True):
        head = 2 * sizes.head if is_full else sizes.head
        model.norms(f"{block}.attn_norm", f"{block}.ffn_norm", size=sizes.embedding)
        model.norms(
            f"{block}.post_attention_norm", f"{block}.post_ffw_norm", f"{block}.post_norm", size=sizes.embedding
        )
        model.norms(f"{block}.attn_q_norm", f"{block}.attn_k_norm", size=head)
        model.attention(block, replace(sizes, heads_kv=heads), head)
        model.feed_forward(block, sizes)
        model.matrix(f"{block}.inp_gate", sizes.embedding, per_layer)
        model.matrix(f"{block}.proj", per_layer, sizes.embedding)
    return model


def _glm4moe(sizes: Sizes) -> Model:
    # The last layer is for multi-token prediction only.
    width = sizes.feed_forward // 2
    keys = {
        "nextn_predict_layers": 1,
        "leading_dense_block_count": 1,
        "expert_count": sizes.experts,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_feed_forward_length": width,
    }
    model = _common("glm4moe", sizes, **keys)
    model.ends(sizes)
    for number, block in enumerate(_blocks(sizes)):
        model.norms(f"{block}.attn_norm", f"{block}.post_attention_norm", size=sizes.embedding)
        model.attention(block, sizes)
        if number == 0:
            model.feed_forward(block, sizes)
        else:
            model.experts(block, sizes, width)
            model.vector(f"{block}.exp_probs_b.bias", sizes.experts)
            model.matrix(f"{block}.ffn_gate_shexp", sizes.embedding, width)
            model.matrix(f"{block}.ffn_up_shexp", sizes.embedding, width)
            model.matrix(f"{block}.ffn_down_shexp", width, sizes.embedding)
        if number == sizes.layers - 1:
            model.matrix(f"{block}.nextn.eh_proj", 2 * sizes.embedding, sizes.embedding)
            model.norms(f"{block}.nextn.enorm", f"{block}.nextn.hnorm", size=sizes.embedding)
    return model


def _rwkv7(sizes: Sizes) -> Model:
    rank = 32
    keys = {
        "wkv.head_size": 64,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.decay_lora_rank": rank,
        "attention.iclr_lora_rank": rank,
        "attention.value_residual_mix_lora_rank": rank,
        "attention.gate_lora_rank": rank,
        "attention.head_count": 0,
        "attention.head_count_kv": 0,
    }
    model = _common("rwkv7", sizes, **keys)
    model.ends(replace(sizes, tied=False))
    width = sizes.embedding
    for name in ("output_norm.bias", "token_embd_norm.weight", "token_embd_norm.bias"):
        model.vector(name, width)
    for block in _blocks(sizes):
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            model.vector(f"{block}.{name}.weight", width)
            model.vector(f"{block}.{name}.bias", width)
        for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k"):
            model.vector(f"{block}.time_mix_{name}.weight", width)
        for name in ("w", "a", "v", "g"):
            model.matrix(f"{block}.time_mix_{name}1", width, rank)
            model.matrix(f"{block}.time_mix_{name}2", rank, width)
        for name in ("key", "value", "receptance", "output"):
            model.matrix(f"{block}.time_mix_{name}", width, width)
        model.vector(f"{block}.time_mix_lerp_fused.weight", width, 1, 1, 6)
        model.vector(f"{block}.channel_mix_lerp_k.weight", width, 1, 1)
        model.matrix(f"{block}.channel_mix_key", width, sizes.feed_forward)
        model.matrix(f"{block}.channel_mix_value", sizes.feed_forward, width)
    return model


ARCHITECTURES: Mapping[str, Callable[[Sizes], Model]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma3": _gemma3,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "falcon-h1": _falcon_h1,
    "lfm2": _lfm2,
    "qwen3next": _qwen3next,
    "gemma2": _gemma2,
    "gemma4": _gemma4,
    "glm4moe": _glm4moe,
    "rwkv7": _rwkv7,
    "bert": _bert,
}


def byte_vocabulary(size: int = 260) -> tuple[list[str], list[int]]:
    """Tokens and their types: the three special ones, all bytes, a space, and fillers up to the size."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, NORMAL]
    fillers = [f"filler{number}" for number in range(size - len(tokens))]
    return tokens + fillers, types + [NORMAL] * len(fillers)


def add_byte_vocabulary(writer: gguf.GGUFWriter, size: int = 260) -> None:
    """A SentencePiece vocabulary that can spell every text byte by byte."""
    tokens, types = byte_vocabulary(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def add_wordpiece_vocabulary(writer: gguf.GGUFWriter, size: int = 260) -> None:
    """A WordPiece vocabulary of single characters, as BERT models have."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*special, *(f"▁{letter}" for letter in letters), *letters]
    tokens += [f"▁filler{number}" for number in range(size - len(tokens))]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * len(special) + [NORMAL] * (len(tokens) - len(special)))
    writer.add_token_type_count(2)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A key of the type that llama.cpp expects for a value of this kind."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_random_tensor(writer: gguf.GGUFWriter, name: str, shape: Shape, kind: str, random: np.random.Generator) -> None:
    """A tensor of small random numbers; vectors are ones, like the weights of a norm."""
    dtype = np.float16 if kind == "f16" else np.float32
    if len(shape) == 1:
        writer.add_tensor(name, np.ones(shape, dtype=dtype))
        return
    values = random.standard_normal(tuple(reversed(shape)), dtype=np.float32) * 0.02
    writer.add_tensor(name, values.astype(dtype))


def write_model(path: Path, architecture: str, sizes: Sizes | None = None, **keys: Any) -> Path:
    """Write a model of `architecture`; `keys` (dots as double underscores) are set in place of its own."""
    sizes = sizes or Sizes()
    model = ARCHITECTURES[architecture](sizes)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"Tiny {architecture}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for key, value in {**model.keys, **{key.replace("__", "."): value for key, value in keys.items()}}.items():
        add_key(writer, f"{architecture}.{key}", value)
    (add_wordpiece_vocabulary if model.wordpiece else add_byte_vocabulary)(writer, sizes.vocabulary)
    random = np.random.default_rng(0)
    for name, shape, kind in model.tensors:
        add_random_tensor(writer, name, shape, kind, random)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
