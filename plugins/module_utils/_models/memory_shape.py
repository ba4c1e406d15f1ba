# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Extract what the memory estimate needs from a model's header: a small dict, stored in the registry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from .._core.errors import EstimateError

# ggml's numbers of the types that are repacked at load on x86: Q4_0, Q4_K and IQ4_NL.
_REPACKED_TYPES = {2, 12, 20}

# Sliding windows: (n, whether the first, default window). One of every n layers attends to everything (0: none does),
# the first or the last of them; the default window is the one that llama.cpp uses if the file has none.
_WINDOWS: dict[str, tuple[int, bool, int]] = {
    "afmoe": (4, False, 0),
    "cohere2": (4, False, 0),
    "cohere2moe": (4, True, 0),
    "exaone-moe": (4, False, 128),
    "exaone4": (4, False, 4096),
    "gemma-embedding": (6, False, 0),
    "gemma2": (2, False, 4096),
    "gemma3": (6, False, 0),
    "gemma3n": (5, False, 0),
    "gpt-oss": (2, False, 0),
    "laguna": (4, True, 0),
    "llama4": (4, False, 8192),
    "mellum": (4, False, 0),
    "modern-bert": (3, True, 0),
    "muse-glimmer": (4, False, 0),
    "olmo2": (4, False, 0),
    "plamo3": (8, False, 0),
    "smallthinker": (4, True, 0),
}

# llama.cpp replaces the file's window with its own. (It ignores phi3's completely.)
_OWN_WINDOW = {"llama4": 8192, "smallthinker": 4096}

# Architectures whose pattern is only in the file, as one flag per layer.
_WINDOWS_IN_FILE = {"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"}
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}

# Models with attention and recurrent layers. In these, layers without key heads are recurrent …
_HYBRID_BY_HEADS = {
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe", "nemotron_h",
    "nemotron_h_moe", "plamo2",
}  # fmt: skip

# … in these, all but every n-th layer are recurrent …
_HYBRID_BY_INTERVAL = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}

# … and in these, every layer is both at once.
_HYBRID_BOTH = {"falcon-h1"}

# Encoders and diffusion models have no cache.
_NO_CACHE = {
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe", "modern-bert",
    "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1", "wavtokenizer-dec",
}  # fmt: skip

# Sparse attention: a second, smaller cache of the indexer's keys next to the main one.
_INDEXED = {"deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3", "qwen4exp"}

# Caches that are not modelled exactly: their size is an estimate too.
_ESTIMATED_CACHE = (_INDEXED - {"deepseek32"}) | {
    "deepseek4", "dflash", "eagle3", "gemma4-assistant", "graniteswitch", "hrm_text", "nanbeige", "t5", "t5encoder",
}  # fmt: skip
_MAX_LAYERS = 4096
_MAX_NUMBER = 1 << 32
_BLOCK = re.compile(r"blk\.([0-9]{1,5})\.(.+)")
_EXPERTS = re.compile(r"ffn_(?:gate|up|down|gate_up)_(?:ch)?exps")


class Tensor(Protocol):
    """The part of `gguf.Tensor` that is read here."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type(self) -> int: ...

    @property
    def n_bytes(self) -> int: ...


class _Keys:
    """A header's numbers by their key without the architecture."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.architecture = str(metadata.get("general.architecture", ""))
        self._metadata = metadata

    def value(self, key: str) -> Any:
        return self._metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """Return a key's number; if it has one per layer, the largest."""
        value = self.value(key)
        if isinstance(value, (tuple, list)):
            return max((self._number(key, item) for item in value), default=default)
        return default if value is None else self._number(key, value)

    def per_layer(self, key: str, layers: int, default: Sequence[int]) -> list[int]:
        """Return one number per layer, of a key that may have one for all layers."""
        value = self.value(key)
        if value is None:
            return list(default)
        if isinstance(value, (tuple, list)):
            given = [self._number(key, item) for item in value[:layers]]
            return given + [0] * (layers - len(given))
        return [self._number(key, value)] * layers

    def _number(self, key: str, value: Any) -> int:
        if isinstance(value, str) or not 0 <= value < _MAX_NUMBER:
            raise EstimateError(
                f"{self.architecture}.{key} is {_cut(value)}, which is not a size: the file is damaged."
            )
        return int(value)


def _cut(value: Any) -> str:
    """An untrusted value, for one line of a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _windowed(keys: _Keys, layers: int, trunk: int, heads_kv: Sequence[int]) -> tuple[int, list[bool]]:
    """The sliding window in tokens, and for each layer whether it attends within it only."""
    nowhere = [False] * layers
    window = keys.number("attention.sliding_window")
    if keys.architecture in _WINDOWS_IN_FILE:
        flags = keys.per_layer("attention.sliding_window_pattern", layers, nowhere)
        return window, [bool(flag) for flag in flags] if window else nowhere
    if keys.architecture == "lfm2":
        return window, [bool(window and heads) for heads in heads_kv]
    if keys.architecture not in _WINDOWS or (keys.architecture == "exaone4" and trunk != 64):
        return 0, nowhere
    every, dense_first, default = _WINDOWS[keys.architecture]
    if keys.value("attention.sliding_window") is None:
        window = default
    if not window:
        return 0, nowhere
    window = _OWN_WINDOW.get(keys.architecture, window)
    pattern = keys.value("attention.sliding_window_pattern")
    if isinstance(pattern, (tuple, list)):
        flags = keys.per_layer("attention.sliding_window_pattern", layers, nowhere)
        return window, [bool(flag) for flag in flags]
    every = keys.number("attention.sliding_window_pattern", every)
    dense = 0 if dense_first else every - 1
    return window, [layer < trunk and (every == 0 or layer % every != dense) for layer in range(layers)]


def _recurrent(keys: _Keys, layers: int, trunk: int, heads_kv: Sequence[int]) -> list[bool]:
    """For each layer whether it keeps recurrent state."""
    architecture = keys.architecture
    if architecture in _RECURRENT or architecture in _HYBRID_BOTH:
        return [layer < trunk for layer in range(layers)]
    if architecture in _HYBRID_BY_HEADS:
        # Nemotron-H has layers that are a feed-forward network alone.
        only = architecture.startswith("nemotron")
        widths = keys.per_layer("feed_forward_length", layers, [0] * layers) if only else [0] * layers
        return [layer < trunk and not heads_kv[layer] and not widths[layer] for layer in range(layers)]
    if architecture in _HYBRID_BY_INTERVAL:
        if keys.value("attention.recurrent_layers") is not None:
            return [bool(flag) for flag in keys.per_layer("attention.recurrent_layers", layers, [])]
        interval = keys.number("full_attention_interval", _HYBRID_BY_INTERVAL[architecture]) or 1
        return [layer < trunk and (layer + 1) % interval != 0 for layer in range(layers)]
    return [False] * layers


def _state(keys: _Keys, heads: int, head_k: int) -> int:
    """Elements of a recurrent layer's state per sequence: its last inputs and its recurrent state."""
    embedding = keys.number("embedding_length")
    if keys.number("wkv.head_size"):
        return embedding * (keys.number("token_shift_count", 2) + keys.number("wkv.head_size"))
    if keys.number("shortconv.l_cache"):
        return embedding * (keys.number("shortconv.l_cache") - 1)
    kernel = keys.number("ssm.conv_kernel")
    if keys.number("kda.head_dim"):
        head = keys.number("kda.head_dim")
        return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
    inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    inputs = max(0, kernel - 1) * (inner + 2 * keys.number("ssm.group_count") * state)
    return inputs + (head_k * head_k * heads if keys.architecture == "minimax-01" else state * inner)


class _Tensors:
    """The tensors' bytes by where llama.cpp places them, and the widths in its compute graph."""

    def __init__(self, tensors: Iterable[Tensor], layers: int) -> None:
        self.blocks = [0] * layers
        self.experts = [0] * layers
        self.input = self.output = 0
        self.tied = 0
        self.tied_repacks = False
        self.widths: dict[str, int] = {}
        embeddings: Tensor | None = None
        has_output = False
        for tensor in tensors:
            block = _BLOCK.fullmatch(tensor.name)
            if block and int(block.group(1)) < layers:
                self._add_to_block(int(block.group(1)), block.group(2), tensor)
            elif tensor.name.startswith(("output", "cls")):
                has_output = has_output or tensor.name == "output.weight"
                self.output += tensor.n_bytes
            else:
                self.input += tensor.n_bytes
                embeddings = tensor if tensor.name == "token_embd.weight" else embeddings
        if embeddings is not None and not has_output:
            self.tied = embeddings.n_bytes
            self.tied_repacks = embeddings.type in _REPACKED_TYPES

    def _add_to_block(self, layer: int, name: str, tensor: Tensor) -> None:
        self.blocks[layer] += tensor.n_bytes
        if _EXPERTS.match(name):
            self.experts[layer] += tensor.n_bytes
        if name.endswith(".weight") and len(tensor.shape) > 1:
            key = name[: -len(".weight")]
            self.widths[key] = max(self.widths.get(key, 0), tensor.shape[1])

    def width(self, *names: str) -> int:
        return sum(self.widths.get(name, 0) for name in names)


def _graph(keys: _Keys, tensors: _Tensors, heads: int, head_k: int, head_v: int, heads_kv: int) -> dict[str, int]:
    """How many 32-bit numbers per token are live at the same time in each part of the compute graph.

    ggml reuses the memory of finished tensors, so the part of a layer with the most live data determines the size: the
    residual stream and its norm, and a few tensors as wide as that part's matrices. The counts were derived from the
    compute buffer sizes that llama-server logs for a range of widths; they are accurate to about 10 %.
    """
    embedding = keys.number("embedding_length")
    used = keys.number("expert_used_count")
    expert = tensors.width("ffn_gate_up_exps") // 2 or tensors.width("ffn_up_exps")
    dense = tensors.width("ffn_up")
    if tensors.width("ffn_gate") or dense > keys.number("feed_forward_length") or used:
        gated = max(dense if tensors.width("ffn_gate") else dense // 2, used * expert)
        feed_forward = 5 * embedding + 3 * gated
        # The experts' results are summed after all are computed; small ones reuse the memory of their inputs.
        if used * embedding > 2 * used * expert:
            feed_forward += used * embedding
    else:
        feed_forward = 6 * embedding + dense

    query = tensors.width("attn_q") or tensors.width("attn_q_b") or heads * head_k
    latent = _latent(keys)
    if latent:
        # Queries are projected into the latent space and results back out of it, per head.
        inside = 2 * head_v + (head_k - head_v) + 2 * keys.number("attention.key_length_mla")
        attention = 5 * embedding + heads * inside
    else:
        attention = 3 * embedding + 2 * query + max(heads * head_k, 3 * heads_kv * head_k)
    mixed = tensors.width("ssm_in") or tensors.width("attn_qkv") or tensors.width("attn_q", "attn_k", "attn_v")
    if tensors.width("shortconv.in_proj"):
        recurrent = 3 * embedding + 2 * tensors.width("shortconv.in_proj")
    elif keys.number("wkv.head_size"):
        recurrent = 20 * embedding
    else:
        recurrent = 3 * embedding + 3 * mixed
    # Per-layer embeddings, live from the first layer to the last.
    aside = keys.number("embedding_length_per_layer_input") * keys.number("block_count")
    feed_forward, attention = feed_forward + aside, attention + aside
    if keys.architecture in _HYBRID_BOTH:
        # One of the two results waits for the other.
        feed_forward, recurrent = feed_forward + embedding, recurrent + embedding
    return {"feed_forward": feed_forward, "attention": attention, "recurrent": recurrent, "heads": heads}


def _latent(keys: _Keys) -> bool:
    """Whether it uses multi-head latent attention: a cell has one compressed row and no values."""
    return bool(keys.number("attention.key_length_mla") and keys.number("attention.value_length_mla"))


def memory_shape(
    metadata: Mapping[str, Any], array_lengths: Mapping[str, int], tensors: Iterable[Tensor]
) -> dict[str, Any]:
    """Return what an estimate needs from a header, as a small JSON-able dict.

    `kinds` are the distinct layers, `layers` their order: bytes of weights and of experts in them, elements of a cell's
    key and value row (`k`, `v`), the sliding window in tokens, the indexer's rows, elements of recurrent state for a
    sequence, whether the layer only predicts `ahead`. Zeros are omitted. Raises EstimateError for implausible
    sizes.
    """
    keys = _Keys(metadata)
    layers = keys.number("block_count")
    if layers > _MAX_LAYERS:
        raise EstimateError(f"{keys.architecture}.block_count is {layers}: llama.cpp has no model of that many layers.")
    trunk = layers - min(keys.number("nextn_predict_layers"), max(0, layers - 1))
    weights = _Tensors(tensors, layers)
    heads = keys.per_layer("attention.head_count", layers, [0] * layers)
    heads_kv = keys.per_layer("attention.head_count_kv", layers, heads)
    embedding = keys.number("embedding_length")
    first = heads[0] if heads else 0
    head_k = keys.number("attention.key_length", embedding // first) if first else 0
    head_v = keys.number("attention.value_length", embedding // first) if first else 0
    shape = {
        "architecture": keys.architecture,
        "context_length": keys.number("context_length"),
        "embedding_length": embedding,
        "vocab_size": array_lengths.get("tokenizer.ggml.tokens", 0) or keys.number("vocab_size"),
        "merges": array_lengths.get("tokenizer.ggml.merges", 0),
        "input_bytes": weights.input,
        "output_bytes": weights.output,
        "tied_bytes": weights.tied,
        "tied_repacks": weights.tied_repacks,
        "graph": _graph(keys, weights, max(heads, default=0), head_k, head_v, max(heads_kv, default=0)),
        "causal": bool(keys.number("attention.causal", 1)),
        "pooled": keys.number("pooling_type") > 0,
        "estimated": ["kv_bytes"] if keys.architecture in _ESTIMATED_CACHE else [],
    }
    kinds: list[dict[str, int]] = []
    order: list[int] = []
    for kind in _layers(keys, layers, trunk, weights, heads, heads_kv, head_k, head_v):
        if kind not in kinds:
            kinds.append(kind)
        order.append(kinds.index(kind))
    return {**shape, "kinds": kinds, "layers": order}


def _layers(
    keys: _Keys,
    layers: int,
    trunk: int,
    weights: _Tensors,
    heads: Sequence[int],
    heads_kv: Sequence[int],
    head_k: int,
    head_v: int,
) -> Iterable[dict[str, int]]:
    """Yield each layer's bytes and rows. Layers after the trunk only predict ahead, and are loaded only for that."""
    architecture = keys.architecture
    window, windowed = _windowed(keys, layers, trunk, heads_kv)
    recurrent = _recurrent(keys, layers, trunk, heads_kv)
    state = _state(keys, heads[0] if heads else 0, head_k) if any(recurrent) else 0
    latent = _latent(keys)
    # Layers after these reuse an earlier layer's keys and values.
    own = {"gemma3n": 20, "gemma4": layers - keys.number("attention.shared_kv_layers")}.get(architecture, layers)
    cached = architecture not in _NO_CACHE and architecture not in _RECURRENT
    indexer = keys.number("attention.indexer.key_length") if architecture in _INDEXED else 0
    for layer in range(layers):
        kind = {"weights": weights.blocks[layer], "experts": weights.experts[layer], "ahead": int(layer >= trunk)}
        if cached and layer < own and (not recurrent[layer] or architecture in _HYBRID_BOTH):
            suffix = "_swa" if windowed[layer] else ""
            kind["k"] = keys.number(f"attention.key_length{suffix}", head_k) * heads_kv[layer]
            kind["v"] = 0 if latent else keys.number(f"attention.value_length{suffix}", head_v) * heads_kv[layer]
            kind["window"] = window if windowed[layer] else 0
            kind["indexer"] = indexer if layer < trunk else 0
        if recurrent[layer]:
            kind["state"] = state
        yield {key: value for key, value in kind.items() if value}
