# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A server's flags as the estimate of its memory reads them, and the context that llama-server lays out by them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._core.errors import EstimateError

# What llama-server takes where a flag is not given. Without --parallel it has four slots that share one KV cache.
DEFAULT_PARALLEL = 4
DEFAULT_BATCH = 2048
DEFAULT_UBATCH = 512
DEFAULT_DRAFT_TOKENS = 3
# llama.cpp rounds every cache up to a multiple of this many cells.
CACHE_PAD = 256

# From this build on, certainly: without --ctx-size, each slot of a cache that is not unified gets the training context,
# and not a share of it.
FULL_SLOTS_SINCE_BUILD = 10600

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


# Flags whose effect on memory the estimate does not have: what it counts instead, and the figures that are not exact.
UNCOUNTED = {
    "n_cpu_ffn": (
        "the weights that it keeps in RAM are counted for the GPU, and after the start it is checked only whether the "
        "server uses the GPU at all",
        ("total_bytes", "vram_bytes"),
    ),
    "lazy_mode": ("tensors that it leaves on disk are counted for RAM", ("total_bytes",)),
}


def _pad(value: int) -> int:
    return -(-value // CACHE_PAD) * CACHE_PAD


class Flags:
    """A server's flags as the estimate reads them: numbers, switches, and their defaults."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self.flash = str(self.value("flash_attn")).lower() not in ("off", "false", "0", "disabled")

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


def slots_for(parallel: int) -> int:
    """Return how many requests a server with this --parallel processes at once; a negative number is the default."""
    return DEFAULT_PARALLEL if parallel < 0 else max(1, parallel)


class Context:
    """How llama-server lays out its context: slots, streams of cells, batches."""

    def __init__(self, shape: Mapping[str, Any], settings: Flags, kind: str, build: int | None) -> None:
        parallel = settings.number("parallel", default=-1)
        self.slots = slots_for(parallel)
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
        pools = self.ranks or shape.get("pooled") or settings.value("pooling") not in (None, "none")
        self.pooled = self.embeds and pools
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


def uncounted(settings: Mapping[str, Any]) -> list[str]:
    """Return the flags whose effect on memory the estimate does not have."""
    flags = Flags(settings)
    # By default such tensors are left on disk above 4 GiB only.
    given = {"n_cpu_ffn": flags.number("n_cpu_ffn", default=0) > 0, "lazy_mode": flags.on("lazy_mode", default=False)}
    return [name for name in UNCOUNTED if given[name]]


def uncounted_warnings(settings: Mapping[str, Any]) -> list[str]:
    """Return a warning for each flag whose effect on memory the estimate does not have."""
    return [f"{name} is not in the estimate of its memory: {UNCOUNTED[name][0]}." for name in uncounted(settings)]
