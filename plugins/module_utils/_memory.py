# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a server takes, from its model's header and its own flags, before anything is started.

Two steps: `memory_shape` keeps of a header what matters, as a small dict for the registry, and `estimate` joins that
shape with a server's flags. Weights, KV cache and recurrent state follow llama.cpp's own arithmetic and are exact;
compute buffers, the process itself and what may grow later are estimates, and the result names them so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from ._errors import MagiError

MIB = 1024 * 1024

# What llama-server takes where a flag is not given. Without --parallel it has four slots that share one KV cache.
DEFAULT_PARALLEL = 4
DEFAULT_BATCH = 2048
DEFAULT_UBATCH = 512
DEFAULT_CACHE_RAM_MIB = 8192
DEFAULT_CHECKPOINTS = 32
# So many conversations that fill a slot's context are expected to wait in the prompt cache for each slot. What a small
# model would need to fill a cache of 8 GiB with is more than anybody asks it.
EXPECTED_PROMPTS = 16
DEFAULT_DRAFT_TOKENS = 3
# llama.cpp rounds every cache up to a multiple of this many cells.
CACHE_PAD = 256

# Builds that certainly have a change which matters here; of those shortly before, the larger figure is taken.
# Logits are no longer reserved for every token of a ubatch, but for one of each slot.
FEW_OUTPUTS_SINCE_BUILD = 9700
# Without --ctx-size, each slot of a cache that is not unified gets the training context: before, a share of it.
FULL_SLOTS_SINCE_BUILD = 10600

# A CPU build of llama-server itself, as measured: code, libraries and threads, and what its vocabulary takes.
PROCESS_BYTES = 24 * MIB
TOKEN_BYTES = 170
MERGE_BYTES = 120
# What a GPU's runtime takes: on each GPU, where 150 to 500 MiB are seen, and on the host.
GPU_CONTEXT_BYTES = 400 * MIB
GPU_RUNTIME_BYTES = 256 * MIB

# The types that --cache-type-k and --cache-type-v take: bytes of a block, elements in it.
CACHE_TYPES: dict[str, tuple[int, int]] = {
    "f32": (4, 1),
    "f16": (2, 1),
    "bf16": (2, 1),
    "q8_0": (34, 32),
    "q5_1": (24, 32),
    "q5_0": (22, 32),
    "q4_1": (20, 32),
    "q4_0": (18, 32),
    "iq4_nl": (18, 32),
}

# ggml's numbers of the types that an x86 processor repacks at load: Q4_0, Q4_K and IQ4_NL.
_REPACKED_TYPES = {2, 12, 20}

# Sliding windows. Of every n layers one attends to everything (0: none does), the first or the last of them; and the
# window that llama.cpp takes where the file has none.
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
# Whatever window the file says, llama.cpp puts its own in its place. (It ignores phi3's altogether.)
_OWN_WINDOW = {"llama4": 8192, "smallthinker": 4096}
# These have the pattern in the file only, one flag for each layer.
_WINDOWS_IN_FILE = {"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"}

_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
# Both kinds of layers in one model. Here those without key heads are the recurrent ones …
_HYBRID_BY_HEADS = {
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe", "nemotron_h",
    "nemotron_h_moe", "plamo2",
}  # fmt: skip
# … here all but every n-th …
_HYBRID_BY_INTERVAL = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
# … and here every layer is both at once.
_HYBRID_BOTH = {"falcon-h1"}

# Encoders and diffusion models keep no cache.
_NO_CACHE = {
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe", "modern-bert",
    "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1", "wavtokenizer-dec",
}  # fmt: skip
# Sparse attention: a second, smaller cache of the indexer's keys beside the main one.
_INDEXED = {"deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3", "qwen4exp"}
# These keep a further state for each drafted token, so that a rejected draft can be taken back.
_ROLLED_BACK = {
    "bailingmoe3", "deepseek4", "glm5-next", "kimi-k3", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "qwen35",
    "qwen35moe", "qwen4exp",
}  # fmt: skip
# Caches that are not modelled to the byte: their size is an estimate too.
_ESTIMATED_CACHE = (_INDEXED - {"deepseek32"}) | {
    "deepseek4", "dflash", "eagle3", "gemma4-assistant", "graniteswitch", "hrm_text", "nanbeige", "t5", "t5encoder",
}  # fmt: skip

# Flags whose memory no header tells, or that move what is counted here.
_UNFORESEEN = (
    "control_vector", "lora", "lora_scaled", "mmproj", "model_draft", "override_kv", "override_tensor",
    "spec_draft_model",
)  # fmt: skip

_MAX_LAYERS = 4096
_MAX_NUMBER = 1 << 32
_BLOCK = re.compile(r"blk\.([0-9]{1,5})\.(.+)")
_EXPERTS = re.compile(r"ffn_(?:gate|up|down|gate_up)_(?:ch)?exps")


class EstimateError(MagiError):
    """A header or a setting that no estimate can be made of."""


class Tensor(Protocol):
    """What is read of `_gguf.Tensor`."""

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
        """A key's number; of one for each layer the largest."""
        value = self.value(key)
        if isinstance(value, (tuple, list)):
            return max((self._number(key, item) for item in value), default=default)
        return default if value is None else self._number(key, value)

    def per_layer(self, key: str, layers: int, default: Sequence[int]) -> list[int]:
        """A key that may hold one number for all layers, or one for each."""
        value = self.value(key)
        if value is None:
            return list(default)
        if isinstance(value, (tuple, list)):
            given = [self._number(key, item) for item in value[:layers]]
            return given + [0] * (layers - len(given))
        return [self._number(key, value)] * layers

    def _number(self, key: str, value: Any) -> int:
        if isinstance(value, str) or not 0 <= value < _MAX_NUMBER:
            raise EstimateError(f"{self.architecture}.{key} is {_cut(value)}, which is no size: the file is damaged.")
        return int(value)


def _cut(value: Any) -> str:
    """A stranger's value, fit for one line of a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _pad(value: int) -> int:
    return -(-value // CACHE_PAD) * CACHE_PAD


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
    """Elements of state that a recurrent layer keeps for a sequence: its last inputs, and what it remembers."""
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
    """The tensors' bytes by where llama.cpp puts them, and the widths that its compute graph has."""

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
    """How many 32-bit numbers for each token are alive at once in each part of the compute graph.

    ggml hands the memory of a finished tensor to the next one, so what counts is the part of a layer where most
    is alive: the residual stream and its norm, and a few tensors as wide as that part's matrices. The counts were
    taken from the compute buffers that llama-server logs over a range of widths; they fit within about a tenth.
    """
    embedding = keys.number("embedding_length")
    used = keys.number("expert_used_count")
    expert = tensors.width("ffn_gate_up_exps") // 2 or tensors.width("ffn_up_exps")
    dense = tensors.width("ffn_up")
    if tensors.width("ffn_gate") or dense > keys.number("feed_forward_length") or used:
        gated = max(dense if tensors.width("ffn_gate") else dense // 2, used * expert)
        feed_forward = 5 * embedding + 3 * gated
        # The experts' results are summed only when all are there; small ones fit where their inputs were.
        if used * embedding > 2 * used * expert:
            feed_forward += used * embedding
    else:
        feed_forward = 6 * embedding + dense

    query = tensors.width("attn_q") or tensors.width("attn_q_b") or heads * head_k
    latent = _latent(keys)
    if latent:
        # Queries are taken into the latent space and results back out of it, per head.
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
    # Embeddings that every layer adds its own part of, alive from the first to the last.
    aside = keys.number("embedding_length_per_layer_input") * keys.number("block_count")
    feed_forward, attention = feed_forward + aside, attention + aside
    if keys.architecture in _HYBRID_BOTH:
        # One of the two results waits for the other.
        feed_forward, recurrent = feed_forward + embedding, recurrent + embedding
    return {"feed_forward": feed_forward, "attention": attention, "recurrent": recurrent, "heads": heads}


def _latent(keys: _Keys) -> bool:
    """Multi-head latent attention, where a cell holds one compressed row and no values."""
    return bool(keys.number("attention.key_length_mla") and keys.number("attention.value_length_mla"))


def memory_shape(
    metadata: Mapping[str, Any], array_lengths: Mapping[str, int], tensors: Iterable[Tensor]
) -> dict[str, Any]:
    """What an estimate needs of a header, as a small dict that JSON can hold.

    `kinds` are the distinct layers, `layers` their order: bytes of weights and of experts in them, elements of a cell's
    key and value row (`k`, `v`), the sliding window in tokens, the indexer's rows, elements of recurrent state for a
    sequence, whether the layer only predicts `ahead`. What is zero is left out. Raises EstimateError for sizes that
    are none.
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
    """Each layer's bytes and rows. Layers after the trunk only predict ahead, and are loaded for that alone."""
    architecture = keys.architecture
    window, windowed = _windowed(keys, layers, trunk, heads_kv)
    recurrent = _recurrent(keys, layers, trunk, heads_kv)
    state = _state(keys, heads[0] if heads else 0, head_k) if any(recurrent) else 0
    latent = _latent(keys)
    # Behind these the layers use an earlier layer's keys and values.
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


class _Settings:
    """A server's flags as the estimate reads them: numbers, switches, and what stands for them where they are unset."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    def value(self, *names: str) -> Any:
        return next((self._settings[name] for name in names if self._settings.get(name) is not None), None)

    def number(self, *names: str, default: int) -> int:
        value = self.value(*names)
        if value is None or str(value) in ("auto", ""):
            return default
        if isinstance(value, bool) or not re.fullmatch(r"[-+]?[0-9]{1,15}", str(value)):
            raise EstimateError(f"{names[0]} is {value!r}: it must be a whole number.")
        return int(value)

    def on(self, name: str, *, default: bool) -> bool:
        """A switch, given by its name or as its negation."""
        for key, meant in ((name, True), (f"no_{name}", False)):
            value = self._settings.get(key)
            if value is not None:
                given = (
                    value if isinstance(value, bool) else str(value).lower() in ("on", "true", "yes", "1", "enabled")
                )
                return given is meant
        return default

    def cache_type(self, *names: str) -> tuple[int, int]:
        value = str(self.value(*names) or "f16").lower()
        if value not in CACHE_TYPES:
            raise EstimateError(f"{names[0]} is {value!r}, llama-server takes one of: {', '.join(CACHE_TYPES)}.")
        return CACHE_TYPES[value]


class _Context:
    """How llama-server lays out its context: slots, streams of cells, batches."""

    def __init__(self, shape: Mapping[str, Any], settings: _Settings, kind: str, build: int | None) -> None:
        parallel = settings.number("parallel", default=-1)
        self.slots = DEFAULT_PARALLEL if parallel < 0 else max(1, parallel)
        self.unified = parallel < 0 or settings.on("kv_unified", default=False)
        self.streams = 1 if self.unified else self.slots
        per_slot = settings.number("kv_unified_per_slot", default=0)
        trained = int(shape["context_length"])
        # The flag that fits a server into memory is what gives every slot the whole training context.
        full = settings.on("fit", default=True) and (build is None or build >= FULL_SLOTS_SINCE_BUILD)
        context = settings.number("ctx_size", default=0)
        if context <= 0 and settings.value("ctx_size") is None:
            context = self.slots * per_slot
        if context <= 0:
            context = max(1, trained * (self.streams if full else 1))
        total = _pad(context)
        self.cells = total if self.unified else _pad(max(1, total // self.slots))
        limits = (self.cells, trained, per_slot)
        self.slot_context = min(limit for limit in limits if limit > 0)
        self.ranks = (
            kind == "reranker" or settings.on("reranking", default=False) or settings.on("rerank", default=False)
        )
        embeds = settings.on("embedding", default=False) or settings.on("embeddings", default=False)
        self.embeds = self.ranks or embeds or kind == "embedding"
        self.ubatch = settings.number("ubatch_size", default=DEFAULT_UBATCH)
        batch = settings.number("batch_size", default=DEFAULT_BATCH)
        self.batch = max(1, min(batch, context) if shape["causal"] else batch)
        self.ubatch = min(self.batch, self.ubatch if self.ubatch > 0 else self.batch)
        if self.embeds:
            self.batch = self.ubatch
        self.swa_full = settings.on("swa_full", default=False)
        drafting = str(settings.value("spec_type") or "")
        # The model's own layers that predict ahead have a context of their own beside the main one.
        self.predicts = "draft-mtp" in drafting
        drafted = settings.number("spec_draft_n_max", default=DEFAULT_DRAFT_TOKENS)
        self.drafted = max(0, drafted) if "draft-" in drafting else 0

    def held(self, layer: Mapping[str, int]) -> int:
        """The cells that a layer has in each stream."""
        window = layer.get("window", 0)
        if not window or self.swa_full:
            return self.cells
        return _pad(min(self.cells, window * (self.slots if self.unified else 1) + self.ubatch))


def _row(cache_type: tuple[int, int], elements: int) -> int:
    size, block = cache_type
    return -(-elements // block) * size


def _compute(
    shape: Mapping[str, Any],
    layers: Sequence[Mapping[str, int]],
    context: _Context,
    *,
    flash: bool,
    build: int | None,
    pooled: bool,
) -> tuple[int, int]:
    """The compute buffer's bytes (masks and inputs, and the part of the graph where most is alive), and the inputs'."""
    graph: dict[str, int] = shape["graph"]
    tokens = context.ubatch
    embedding = int(shape["embedding_length"])
    # A mask for each cache, the windowed and the full; encoders attend within the batch.
    cached = {bool(layer.get("window")): context.held(layer) for layer in layers if layer.get("k")}
    encodes = not cached and not any(layer.get("state") for layer in layers)
    spans = [tokens] if encodes else list(cached.values())
    # With flash attention it is of 16-bit numbers.
    mask = sum(spans) // 2 if flash else sum(spans)
    attention = 0
    if spans:
        scores = 0 if flash else graph["heads"] * max(spans) + embedding
        attention = graph["attention"] + scores
    state = max((layer.get("state", 0) for layer in layers), default=0)
    recurrent = graph["recurrent"] + 2 * state * context.slots // tokens if state else 0
    every_token = context.embeds or build is None or build < FEW_OUTPUTS_SINCE_BUILD
    outputs = tokens if every_token else min(tokens, context.slots * (1 + context.drafted))
    has_logits = bool(shape["output_bytes"] or shape["tied_bytes"]) and shape["causal"] and not pooled
    logits = 5 * embedding + shape["vocab_size"] * outputs // tokens if has_logits else 0
    alive = max(graph["feed_forward"], attention, recurrent, logits)
    if context.predicts and any(layer.get("ahead") for layer in layers):
        # A second graph of these layers only: what follows attention is for the few outputs.
        alive += 10 + (context.cells // 2 if flash else context.cells) + attention
    return 4 * tokens * (10 + mask + alive), 4 * tokens * (10 + mask + embedding)


def _growth(
    layers: Sequence[Mapping[str, int]], settings: _Settings, context: _Context, row_bytes: Sequence[int]
) -> tuple[int, int]:
    """What a server may still take on the host, and what of it is expected: prompt cache and context checkpoints.

    Checkpoints are made of what cannot be rolled back (windowed caches and recurrent state), up to a number for each
    slot. Without a limit (--cache-ram -1) the prompt cache holds as many tokens as the slots.
    """
    cells = context.slots * context.slot_context * sum(row_bytes)
    states = context.slots * sum(4 * layer.get("state", 0) for layer in layers)
    expected = EXPECTED_PROMPTS * (cells + states)
    limit: int = settings.number("cache_ram", default=DEFAULT_CACHE_RAM_MIB) * MIB
    if limit < 0:
        limit = cells
    state: int = sum(4 * layer.get("state", 0) for layer in layers)
    if not context.swa_full:
        for layer, row in zip(layers, row_bytes):
            if layer.get("window"):
                state += min(context.slot_context, layer["window"]) * row
    count = max(0, settings.number("ctx_checkpoints", "swa_checkpoints", default=DEFAULT_CHECKPOINTS))
    checkpoints = context.slots * count * state
    return limit + checkpoints, min(limit, expected) + checkpoints


def _rows(layers: Sequence[Mapping[str, int]], settings: _Settings, *, flash: bool) -> list[int]:
    """Each layer's bytes for a cell: keys, values and the indexer's keys."""
    types = settings.cache_type("cache_type_k"), settings.cache_type("cache_type_v")
    ahead = (
        settings.cache_type("spec_draft_type_k", "cache_type_k_draft"),
        settings.cache_type("spec_draft_type_v", "cache_type_v_draft"),
    )
    # Without flash attention values are kept transposed, all as wide as the widest.
    widest = 0 if flash else max((layer.get("v", 0) for layer in layers), default=0)
    rows = []
    for layer in layers:
        type_k, type_v = ahead if layer.get("ahead") else types
        values = max(layer.get("v", 0), widest) if layer.get("v") else 0
        rows.append(_row(type_k, layer.get("k", 0)) + _row(type_v, values) + _row(type_k, layer.get("indexer", 0)))
    return rows


def _vram(
    shape: Mapping[str, Any], layers: Sequence[Mapping[str, int]], settings: _Settings, held: Sequence[int]
) -> tuple[int, bool]:
    """Bytes of weights and of what their layers hold on all GPUs, and whether the output is there too."""
    value = settings.value("n_gpu_layers", "gpu_layers")
    everything = len(layers) + 1
    # Unset, auto and all: as many as there are. llama.cpp counts from the end, the output first.
    wanted = everything if value == "all" else settings.number("n_gpu_layers", "gpu_layers", default=everything)
    first = max(0, everything - wanted) if wanted >= 0 else 0
    every_expert = settings.on("cpu_moe", default=False)
    experts_in_ram = everything if every_expert else settings.number("n_cpu_moe", default=0)
    offload_kv = settings.on("kv_offload", default=True)
    vram = 0
    for number, layer in enumerate(layers):
        if number >= first:
            vram += layer.get("weights", 0) - (layer.get("experts", 0) if number < experts_in_ram else 0)
            vram += held[number] if offload_kv else 0
    has_output = first <= len(layers)
    return vram + (shape["output_bytes"] + shape["tied_bytes"] if has_output else 0), has_output


def estimate(
    shape: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    kind: str = "model",
    gpus: int = 0,
    build: int | None = None,
    companion_bytes: int = 0,
) -> dict[str, Any]:
    """Bytes that a server takes with these flags (llama-server's long ones in snake_case; unset: its defaults).

    `kind` is the record's; `gpus` how many GPUs the server may use; `build` llama-server's, where it is known (older
    and unknown ones reserve more for their outputs); `companion_bytes` the weights of further files (mmproj, draft).

    The result: weights_bytes, kv_bytes and recurrent_bytes are exact, as far as "estimates" does not name them.
    compute_bytes is for one device. host_bytes is the process itself with its vocabulary and output buffers
    (output_bytes of it are the latter).
    total_bytes = ram_bytes + vram_bytes is what is taken once the server works: hold it against a budget.
    vram_bytes is the sum over all GPUs; gpu_fixed_bytes of it is taken on every single GPU, however the layers are
    split. growth_bytes may come on top later, on the host: count it for a limit such as MemoryMax (which is
    ram_bytes + growth_bytes), not for a budget; expected_growth_bytes is what is likely of it. slot_context is what a
    slot gets, in tokens.

    Layers that --fit moves off a full GPU, and the context that it shortens, are not foreseen: this is what the
    flags ask for. Draft models, projectors and adapters bring caches and graphs of their own that are not counted:
    with such a flag "estimates" names total_bytes too.
    """
    flags = _Settings(settings)
    context = _Context(shape, flags, kind, build)
    if str(flags.value("device")) == "none":
        gpus = 0
    elif gpus and str(flags.value("split_mode")) == "none":
        gpus = 1
    kinds: list[dict[str, int]] = shape["kinds"]
    layers = [kinds[number] for number in shape["layers"]]
    # Layers that only predict ahead are not even loaded where nothing asks for it.
    layers = [layer if context.predicts or not layer.get("ahead") else {} for layer in layers]
    flash = str(flags.value("flash_attn")).lower() not in ("off", "false", "0", "disabled")
    rows = _rows(layers, flags, flash=flash)
    kv = [context.held(layer) * context.streams * row for layer, row in zip(layers, rows)]
    states = context.slots * (1 + (context.drafted if shape["architecture"] in _ROLLED_BACK else 0))
    recurrent = [4 * states * layer.get("state", 0) for layer in layers]

    states_and_cells = [held + state for held, state in zip(kv, recurrent)]
    vram, output_on_gpu = _vram(shape, layers, flags, states_and_cells) if gpus else (0, False)
    vram += companion_bytes if gpus and flags.on("mmproj_offload", default=True) else 0
    weights = shape["input_bytes"] + shape["output_bytes"] + sum(layer.get("weights", 0) for layer in layers)
    weights += companion_bytes
    # Embeddings that serve as output matrix too are there twice where the two uses want different memory.
    if output_on_gpu or (shape["tied_repacks"] and flags.on("repack", default=True)):
        weights += shape["tied_bytes"]

    pooled = context.embeds and (context.ranks or shape["pooled"] or flags.value("pooling") not in (None, "none"))
    compute, inputs = _compute(shape, layers, context, flash=flash, build=build, pooled=pooled)
    fixed = compute + GPU_CONTEXT_BYTES if gpus else 0
    vram += fixed * gpus
    outputs = 4 * context.slots * (shape["vocab_size"] + (shape["embedding_length"] if context.embeds else 0))
    host = PROCESS_BYTES + TOKEN_BYTES * shape["vocab_size"] + MERGE_BYTES * shape["merges"] + outputs
    # With a GPU the batch's inputs are kept on both sides.
    host += GPU_RUNTIME_BYTES + inputs if gpus else 0
    total = weights + sum(kv) + sum(recurrent) + host + (fixed * gpus if gpus else compute)
    grows = kind == "model" and not context.embeds
    growth, expected_growth = _growth(layers, flags, context, rows) if grows else (0, 0)
    unforeseen = ["total_bytes"] if any(flags.value(name) for name in _UNFORESEEN) else []
    return {
        "weights_bytes": weights,
        "kv_bytes": sum(kv),
        "recurrent_bytes": sum(recurrent),
        "compute_bytes": compute,
        "host_bytes": host,
        "output_bytes": outputs,
        "growth_bytes": growth,
        "expected_growth_bytes": expected_growth,
        "gpu_fixed_bytes": fixed,
        "ram_bytes": total - vram,
        "vram_bytes": vram,
        "total_bytes": total,
        "slot_context": context.slot_context,
        "estimates": [
            "compute_bytes",
            "host_bytes",
            "growth_bytes",
            "expected_growth_bytes",
            *shape["estimated"],
            *unforeseen,
        ],
    }
