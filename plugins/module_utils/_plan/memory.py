# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""How much memory a server takes, from its model's header and its own flags, before anything is started.

Two steps: `_memory_shape` keeps of a header what matters, as a small dict for the registry, and `estimate` joins that
shape with a server's flags. Weights, KV cache and recurrent state follow llama.cpp's own arithmetic and are exact;
compute buffers, the process itself and what may grow later are estimates, and the result names them so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.errors import EstimateError

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
# What a GPU's runtime takes, as measured with CUDA: on each GPU after the first prompt, more of it with experts and
# without flash attention, and on the host.
GPU_CONTEXT_BYTES = 600 * MIB
GPU_EXPERTS_BYTES = 110 * MIB
GPU_PLAIN_ATTENTION_BYTES = 148 * MIB
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


# These keep a further state for each drafted token, so that a rejected draft can be taken back.
_ROLLED_BACK = {
    "bailingmoe3", "deepseek4", "glm5-next", "kimi-k3", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "qwen35",
    "qwen35moe", "qwen4exp",
}  # fmt: skip

# Flags whose memory cannot be read from a header, or that move what is counted here.
_UNFORESEEN = (
    "control_vector", "lora", "lora_scaled", "mmproj", "model_draft", "override_kv", "override_tensor",
    "spec_draft_model",
)  # fmt: skip


def _pad(value: int) -> int:
    return -(-value // CACHE_PAD) * CACHE_PAD


class _Settings:
    """A server's flags as the estimate reads them: numbers, switches, and their defaults."""

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
        # The model's own layers that predict ahead have a context of their own next to the main one.
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


def _offload(count: int, settings: _Settings) -> tuple[int, int]:
    """Return the first of so many layers that is on a GPU, and below which number experts are in RAM."""
    value = settings.value("n_gpu_layers", "gpu_layers")
    everything = count + 1
    # Unset, auto and all: as many as there are. llama.cpp counts from the end, the output first.
    wanted = everything if value == "all" else settings.number("n_gpu_layers", "gpu_layers", default=everything)
    first = max(0, everything - wanted) if wanted >= 0 else 0
    every_expert = settings.on("cpu_moe", default=False)
    return first, everything if every_expert else settings.number("n_cpu_moe", default=0)


def _vram(
    shape: Mapping[str, Any], layers: Sequence[Mapping[str, int]], settings: _Settings, held: Sequence[int]
) -> tuple[int, bool]:
    """Bytes of weights and of what their layers hold on all GPUs, and whether the output is there too."""
    first, experts_in_ram = _offload(len(layers), settings)
    offload_kv = settings.on("kv_offload", default=True)
    vram = 0
    for number, layer in enumerate(layers):
        if number >= first:
            vram += layer.get("weights", 0) - (layer.get("experts", 0) if number < experts_in_ram else 0)
            vram += held[number] if offload_kv else 0
    has_output = first <= len(layers)
    return vram + (shape["output_bytes"] + shape["tied_bytes"] if has_output else 0), has_output


def _gpu_runtime(
    shape: Mapping[str, Any], layers: Sequence[Mapping[str, int]], settings: _Settings, *, flash: bool
) -> int:
    """What the runtime takes on each GPU, with the copy of weights in RAM that long prompts are computed with."""
    first, experts_in_ram = _offload(len(layers), settings)
    has_experts = any(layer.get("experts") for layer in layers)
    copied = [layer.get("experts", 0) for layer in layers[:experts_in_ram]]
    copied += [layer.get("weights", 0) - layer.get("experts", 0) for layer in layers[:first]]
    # Of a layer one matrix at a time: its experts are three, and the largest of the others is a quarter.
    copy = max(copied, default=0) // 3 if has_experts else max(copied, default=0) // 4
    return (
        GPU_CONTEXT_BYTES
        + (GPU_EXPERTS_BYTES if has_experts else 0)
        + (0 if flash else GPU_PLAIN_ATTENTION_BYTES)
        + (copy if settings.on("op_offload", default=True) else 0)
    )


def computes_on_cpu(shape: Mapping[str, Any], settings: Mapping[str, Any], gpus: int) -> bool:
    """Return whether any layer of such a server is on the CPU; arguments as for estimate."""
    flags = _Settings(settings)
    if not gpus or str(flags.value("device")) == "none":
        return True
    first, experts_in_ram = _offload(len(shape["layers"]), flags)
    has_experts = any(shape["kinds"][number].get("experts") for number in shape["layers"][:experts_in_ram])
    return first > 0 or has_experts or not flags.on("kv_offload", default=True)


def slot_context(
    shape: Mapping[str, Any], settings: Mapping[str, Any], *, kind: str = "model", build: int | None = None
) -> int:
    """The tokens that one slot of such a server gets; arguments as for estimate."""
    return _Context(shape, _Settings(settings), kind, build).slot_context


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
    fixed = compute + _gpu_runtime(shape, layers, flags, flash=flash) if gpus else 0
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
