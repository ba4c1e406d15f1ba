# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Determine a model's quantization and tier from its file name, tensors and metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .ggml_types import GGML_TYPES
from .gguf import Tensor
from .metadata import whole_number
from .names import QUANT_TOKEN, stem_of

TIERS = ("Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "F16", "F32")

# general.file_type, as llama.cpp numbers it; 1024 is a flag for "guessed".
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
_GUESSED = 1024

# Upper limits per tier, used if only the bits per weight are known.
_BANDS = ((3.0, "Q2"), (4.0, "Q3"), (5.2, "Q4"), (6.0, "Q5"), (7.5, "Q6"), (9.0, "Q8"), (20.0, "F16"))
# Plausible bits per weight of a tier: small models measure higher (embeddings, outer layers), dynamic quants lower.
_PLAUSIBLE = {
    "Q1": (1.0, 3.4), "Q2": (1.8, 4.6), "Q3": (2.6, 5.5), "Q4": (3.7, 6.6), "Q5": (4.8, 7.4), "Q6": (5.8, 8.6),
    "Q8": (7.3, 12.0), "F16": (14.0, 20.0), "F32": (28.0, 32.5),
}  # fmt: skip


class Quantization(NamedTuple):
    name: str
    tier: str | None
    bits_per_weight: float | None
    warnings: list[str]


def tier_of(quantization: str) -> str | None:
    """Return the tier of a quantization name."""
    name = quantization.upper()
    if re.search(r"F?P?32$", name) and "F" in name:
        return "F32"
    if name.endswith("16") and "F" in name:
        return "F16"
    if "FP4" in name:
        return "Q4"
    match = re.search(r"Q([1-8])", name)
    if not match:
        return None
    return f"Q{match[1]}" if match[1] != "7" else "Q6"


def tier_of_bits(bits_per_weight: float) -> str:
    """Return the tier by the measured bits per weight alone."""
    return next((tier for limit, tier in _BANDS if bits_per_weight < limit), "F32")


def quantization_of(path: str, metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> Quantization:
    """Return the quantization: by file name, else by measured bits per weight, else by general.file_type.

    general.file_type comes last because it may be wrong.
    """
    parameters = sum(tensor.elements for tensor in tensors)
    bits = round(sum(tensor.n_bytes for tensor in tensors) * 8 / parameters, 2) if parameters else None
    number = whole_number(metadata, "general.file_type")
    said = _FILE_TYPES.get(number & ~_GUESSED) if number is not None else None
    said_tier = tier_of(said) if said else None
    tokens = [_quant_name(match.group(0)) for match in QUANT_TOKEN.finditer(stem_of(path))]
    warnings = []
    if tokens:
        # A name may contain several quantizations (Q4_K_M-f16-embed): use the last one that fits the measurement.
        name = next((token for token in reversed(tokens) if _is_plausible(tier_of(token), bits)), tokens[-1])
        tier = tier_of(name)
        if not _is_plausible(tier, bits):
            # Fewer bits than the name promises, as in gpt-oss-20b-F16, whose experts are MXFP4. More are usual in
            # small models, whose embeddings are not quantized as much.
            lower = tier_of_bits(bits) if bits is not None else None
            tier = min((tier, lower), key=lambda one: TIERS.index(one) if one else len(TIERS))
            warnings.append(f"tier: the file name says {name}, the tensors measure {bits} bits per weight")
        if said and said_tier != tier_of(name):
            warnings.append(f"tier: the file name says {name}, general.file_type says {said}")
    elif bits is not None:
        tier = tier_of_bits(bits)
        name = said if said and said_tier and _is_plausible(said_tier, bits) else _main_type(tensors)
        if said and said_tier != tier:
            warnings.append(f"tier: the tensors measure {bits} bits per weight, general.file_type says {said}")
    else:
        name, tier = said or "", said_tier
    return Quantization(name, tier, bits, warnings)


def _quant_name(token: str) -> str:
    """Return the normalised spelling of a quantization in a file name."""
    return re.sub(r"^UD_", "UD-", token.upper()).replace("FP16", "F16").replace("FP32", "F32")


def _is_plausible(tier: str | None, bits: float | None) -> bool:
    """Return whether the measured bits per weight fit the tier; True if either is unknown."""
    return tier is None or bits is None or _PLAUSIBLE[tier][0] <= bits <= _PLAUSIBLE[tier][1]


def _main_type(tensors: Sequence[Tensor]) -> str:
    """Return the most common tensor type by number of weights."""
    weights: dict[int, int] = {}
    for tensor in tensors:
        weights[tensor.type] = weights.get(tensor.type, 0) + tensor.elements
    return GGML_TYPES[max(weights, key=lambda kind: weights[kind])].name if weights else ""
