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

from collections.abc import Mapping, Sequence
from typing import Any

from .memory_flags import UNCOUNTED, Context, Flags, uncounted

MIB = 1024 * 1024

# What llama-server takes where a flag is not given.
DEFAULT_CACHE_RAM_MIB = 8192
DEFAULT_CHECKPOINTS = 32
# So many conversations that fill a slot's context are expected to wait in the prompt cache for each slot. What a small
# model would need to fill a cache of 8 GiB with is more than anybody asks it.
EXPECTED_PROMPTS = 16

# Builds that certainly have a change which matters here; of those shortly before, the larger figure is taken.
# Logits are no longer reserved for every token of a ubatch, but for one of each slot.
FEW_OUTPUTS_SINCE_BUILD = 9700
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

# These keep a further state for each drafted token, so that a rejected draft can be taken back.
_ROLLED_BACK = {
    "bailingmoe3", "deepseek4", "glm5-next", "kimi-k3", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "qwen35",
    "qwen35moe", "qwen4exp",
}  # fmt: skip

# What is not exact in any estimate.
_ESTIMATED = ("compute_bytes", "host_bytes", "growth_bytes", "expected_growth_bytes")
# Flags whose memory cannot be read from a header, or that move what is counted here.
_UNFORESEEN = (
    "control_vector", "lora", "lora_scaled", "mmproj", "model_draft", "override_kv", "override_tensor",
    "spec_draft_model",
)  # fmt: skip


def _row(cache_type: tuple[int, int], elements: int) -> int:
    size, block = cache_type
    return -(-elements // block) * size


def _compute(
    shape: Mapping[str, Any],
    layers: Sequence[Mapping[str, int]],
    context: Context,
    *,
    flash: bool,
    build: int | None,
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
    has_logits = bool(shape["output_bytes"] or shape["tied_bytes"]) and shape["causal"] and not context.pooled
    logits = 5 * embedding + shape["vocab_size"] * outputs // tokens if has_logits else 0
    alive = max(graph["feed_forward"], attention, recurrent, logits)
    if context.predicts and any(layer.get("ahead") for layer in layers):
        # A second graph of these layers only: what follows attention is for the few outputs.
        alive += 10 + (context.cells // 2 if flash else context.cells) + attention
    return 4 * tokens * (10 + mask + alive), 4 * tokens * (10 + mask + embedding)


def _growth(
    layers: Sequence[Mapping[str, int]], settings: Flags, context: Context, row_bytes: Sequence[int]
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


def _rows(layers: Sequence[Mapping[str, int]], settings: Flags) -> list[int]:
    """Each layer's bytes for a cell: keys, values and the indexer's keys."""
    types = settings.cache_type("cache_type_k"), settings.cache_type("cache_type_v")
    ahead = (
        settings.cache_type("spec_draft_type_k", "cache_type_k_draft"),
        settings.cache_type("spec_draft_type_v", "cache_type_v_draft"),
    )
    # Without flash attention values are kept transposed, all as wide as the widest.
    widest = 0 if settings.flash else max((layer.get("v", 0) for layer in layers), default=0)
    rows = []
    for layer in layers:
        type_k, type_v = ahead if layer.get("ahead") else types
        values = max(layer.get("v", 0), widest) if layer.get("v") else 0
        rows.append(_row(type_k, layer.get("k", 0)) + _row(type_v, values) + _row(type_k, layer.get("indexer", 0)))
    return rows


def _offload(count: int, settings: Flags) -> tuple[int, int]:
    """Return the first of so many layers that is on a GPU, and below which number experts are in RAM."""
    value = settings.value("n_gpu_layers", "gpu_layers")
    everything = count + 1
    # Unset, auto and all: as many as there are. llama.cpp counts from the end, the output first.
    wanted = everything if value == "all" else settings.number("n_gpu_layers", "gpu_layers", default=everything)
    first = max(0, everything - wanted) if wanted >= 0 else 0
    every_expert = settings.on("cpu_moe", default=False)
    return first, everything if every_expert else settings.number("n_cpu_moe", default=0)


def _vram(
    shape: Mapping[str, Any], layers: Sequence[Mapping[str, int]], settings: Flags, held: Sequence[int]
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


def _expert_cache(layers: Sequence[Mapping[str, int]], settings: Flags) -> int:
    """The bytes on all GPUs that copies of experts in RAM take there."""
    first, experts_in_ram = _offload(len(layers), settings)
    cached = sum(layer.get("experts", 0) for layer in layers[: max(first, experts_in_ram)])
    return min(cached, max(0, settings.number("moe_cache_mib", default=0)) * MIB)


def _gpu_runtime(shape: Mapping[str, Any], layers: Sequence[Mapping[str, int]], settings: Flags) -> int:
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
        + (0 if settings.flash else GPU_PLAIN_ATTENTION_BYTES)
        + (copy if settings.on("op_offload", default=True) else 0)
    )


def computes_on_cpu(shape: Mapping[str, Any], settings: Mapping[str, Any], gpus: int) -> bool:
    """Return whether any layer of such a server is on the CPU; arguments as for estimate."""
    flags = Flags(settings)
    if not gpus or str(flags.value("device")) == "none":
        return True
    first, experts_in_ram = _offload(len(shape["layers"]), flags)
    has_experts = any(shape["kinds"][number].get("experts") for number in shape["layers"][:experts_in_ram])
    has_dense = flags.number("n_cpu_ffn", default=0) > 0
    return first > 0 or has_experts or has_dense or not flags.on("kv_offload", default=True)


def slot_context(
    shape: Mapping[str, Any], settings: Mapping[str, Any], *, kind: str = "model", build: int | None = None
) -> int:
    """The tokens that one slot of such a server gets; arguments as for estimate."""
    return Context(shape, Flags(settings), kind, build).slot_context


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
    (output_bytes of it are the latter, inputs_bytes a batch's inputs that are kept on the host next to those on a GPU).
    total_bytes = ram_bytes + vram_bytes is taken once the server works: hold it against a budget. vram_bytes is the
    sum over all GPUs; gpu_fixed_bytes of it is taken on every single GPU, however the layers are split. growth_bytes
    may come on top later, on the host: count it for a limit such as MemoryMax (which is ram_bytes + growth_bytes), not
    for a budget; expected_growth_bytes is what is likely of it. slot_context is what a slot gets, in tokens.

    Layers that --fit moves off a full GPU, and the context that it shortens, are not foreseen. Caches and graphs of
    draft models, projectors and adapters are not counted: with such a flag "estimates" names total_bytes too.
    """
    flags = Flags(settings)
    context = Context(shape, flags, kind, build)
    gpus = _usable(flags, gpus)
    layers = _loaded(shape, context)
    rows = _rows(layers, flags)
    kv, recurrent = _held(shape, layers, context, rows)
    states_and_cells = [held + state for held, state in zip(kv, recurrent)]
    vram, output_on_gpu = _vram(shape, layers, flags, states_and_cells) if gpus else (0, False)
    weights = _weights(shape, layers, flags, output_on_gpu=output_on_gpu) + companion_bytes
    compute, inputs = _compute(shape, layers, context, flash=flags.flash, build=build)
    fixed = compute + _gpu_runtime(shape, layers, flags) if gpus else 0
    copies = _expert_cache(layers, flags) if gpus else 0
    vram += copies + fixed * gpus + (companion_bytes if gpus and flags.on("mmproj_offload", default=True) else 0)
    outputs = 4 * context.slots * (shape["vocab_size"] + (shape["embedding_length"] if context.embeds else 0))
    # With a GPU the batch's inputs are kept on both sides.
    host = _process(shape) + outputs + (GPU_RUNTIME_BYTES + inputs if gpus else 0)
    total = weights + copies + sum(states_and_cells) + host + (fixed * gpus if gpus else compute)
    growth, expected = _growth(layers, flags, context, rows) if kind == "model" and not context.embeds else (0, 0)
    return {
        "weights_bytes": weights,
        "kv_bytes": sum(kv),
        "recurrent_bytes": sum(recurrent),
        "compute_bytes": compute,
        "host_bytes": host,
        "output_bytes": outputs,
        "inputs_bytes": inputs if gpus else 0,
        "growth_bytes": growth,
        "expected_growth_bytes": expected,
        "gpu_fixed_bytes": fixed,
        "ram_bytes": total - vram,
        "vram_bytes": vram,
        "total_bytes": total,
        "slot_context": context.slot_context,
        "estimates": [*_ESTIMATED, *shape["estimated"], *_unforeseen(flags, settings)],
    }


def _usable(flags: Flags, gpus: int) -> int:
    """How many of so many GPUs the server uses."""
    if str(flags.value("device")) == "none":
        return 0
    return 1 if gpus and str(flags.value("split_mode")) == "none" else gpus


def _loaded(shape: Mapping[str, Any], context: Context) -> list[dict[str, int]]:
    """What each layer takes. Those that only predict ahead are not even loaded where nothing asks for it."""
    kinds: list[dict[str, int]] = shape["kinds"]
    layers = [kinds[number] for number in shape["layers"]]
    return [layer if context.predicts or not layer.get("ahead") else {} for layer in layers]


def _held(
    shape: Mapping[str, Any], layers: Sequence[Mapping[str, int]], context: Context, rows: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The bytes of each layer's cells and of its recurrent state."""
    states = context.slots * (1 + (context.drafted if shape["architecture"] in _ROLLED_BACK else 0))
    return (
        [context.held(layer) * context.streams * row for layer, row in zip(layers, rows)],
        [4 * states * layer.get("state", 0) for layer in layers],
    )


def _process(shape: Mapping[str, Any]) -> int:
    """The bytes of the process itself with its vocabulary."""
    size: int = PROCESS_BYTES + TOKEN_BYTES * shape["vocab_size"] + MERGE_BYTES * shape["merges"]
    return size


def _weights(
    shape: Mapping[str, Any], layers: Sequence[Mapping[str, int]], flags: Flags, *, output_on_gpu: bool
) -> int:
    weights: int = shape["input_bytes"] + shape["output_bytes"] + sum(layer.get("weights", 0) for layer in layers)
    # Embeddings that serve as output matrix too are there twice where the two uses want different memory.
    is_twice = output_on_gpu or (shape["tied_repacks"] and flags.on("repack", default=True))
    return weights + (shape["tied_bytes"] if is_twice else 0)


def _unforeseen(flags: Flags, settings: Mapping[str, Any]) -> list[str]:
    found = {"total_bytes"} if any(flags.value(name) for name in _UNFORESEEN) else set()
    return sorted(found.union(*(UNCOUNTED[name][1] for name in uncounted(settings))))
