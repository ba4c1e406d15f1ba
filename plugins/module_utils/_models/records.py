# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Build registry records from GGUF headers: a file's kind, display name, quantization and sizes.

A record depends on its own files only, so it is reused while they are unchanged. Ids (`names`) and mmproj pairs
(`projectors`) depend on the other files and are computed in every scan.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .._core.errors import MagiError
from .._core.text import clean_text
from .ggml_types import GGML_TYPES
from .gguf import Header, Tensor
from .memory_shape import memory_shape
from .names import QUANT_TOKEN, stem_of
from .source_files import SourceFile, fingerprint_of

SERVABLE = ("model", "embedding", "reranker", "decision")
TIERS = ("Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "F16", "F32")

# llama.cpp itself stops at 512 layers.
MAX_BLOCKS = 1024

# Architectures that only compute embeddings.
_ENCODERS = {
    "bert", "eurobert", "gemma-embedding", "gemma-embedding2", "jina-bert-v2", "jina-bert-v3", "llama-embed",
    "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder",
}  # fmt: skip
# Architectures that only draft tokens for another model.
_DRAFTS = {"dflash", "dflash-draft", "eagle", "eagle3", "gemma4-assistant"}
# Architectures that choose among labels, at /v1/systemone, and generate nothing.
_DECISIONS = {"clef"}
_POOLING_NONE, _POOLING_RANK = 0, 4
# A projector's last tensor, and the dimension of it that is the embedding length of the models that it fits, as in
# llama.cpp. Older converters wrote CLIP's own width into the metadata key.
_PROJECTIONS = (
    ("mm.3.bias", 0),
    ("mm.2.bias", 0),
    ("mm.model.mb_block.1.block.2.1.bias", 0),
    ("mm.model.peg.0.bias", 0),
    ("mm.model.fc.weight", 1),
    ("mm.input_projection.weight", 0),
)

# general.file_type, as llama.cpp numbers it; 1024 is a flag for "guessed".
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
_GUESSED = 1024

_DRAFT_TOKEN = re.compile(r"(?:^|[-._ ])draft(?:$|[-._ ])", re.IGNORECASE)
_ARCHITECTURE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")

# Upper limits per tier, used if only the bits per weight are known.
_BANDS = ((3.0, "Q2"), (4.0, "Q3"), (5.2, "Q4"), (6.0, "Q5"), (7.5, "Q6"), (9.0, "Q8"), (20.0, "F16"))
# Plausible bits per weight of a tier: small models measure higher (embeddings, outer layers), dynamic quants lower.
_PLAUSIBLE = {
    "Q1": (1.0, 3.4), "Q2": (1.8, 4.6), "Q3": (2.6, 5.5), "Q4": (3.7, 6.6), "Q5": (4.8, 7.4), "Q6": (5.8, 8.6),
    "Q8": (7.3, 12.0), "F16": (14.0, 20.0), "F32": (28.0, 32.5),
}  # fmt: skip

# Metadata keys that name a file's source.
_SOURCES = ("general.repo_url", "general.url", "general.source.repo_url", "general.source.url")


class ModelError(MagiError):
    """Raised for a valid GGUF file that llama-server cannot use; the text is the reason."""


# --- names -----------------------------------------------------------------------------------------------------------


def _display_name(path: str, metadata: Mapping[str, Any], quantization: str) -> str:
    stem = stem_of(path)
    name = clean_text(_text(metadata, "general.name") or "", 80)
    # Converters write a folder's or temporary file's name if the model card has none.
    if not re.search(r"[^\W\d_]{2}", name) or name.lower() in ("model", "models", "ggml-model", "tmp", "checkpoint"):
        name = clean_text(QUANT_TOKEN.sub("", stem), 80).strip("-._ ") or clean_text(stem, 80)
    if " " not in name:
        name = re.sub(r"[-_]+", " ", name).strip()
    if quantization and quantization.lower() not in name.lower():
        name = f"{name} ({quantization})"
    return name


# --- values of untrusted metadata ------------------------------------------------------------------------------------


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _short(metadata: Mapping[str, Any], *keys: str) -> str | None:
    """Return the first of these keys with a text value, as one printable line."""
    for key in keys:
        text = clean_text(_text(metadata, key) or "")
        if text:
            return text
    return None


def _counts(metadata: Mapping[str, Any], key: str) -> list[int]:
    """Return a count, or one per layer, as a list; empty if the key is missing or not an integer."""
    value = metadata.get(key)
    values = value if isinstance(value, tuple) else (value,)
    sound = [item for item in values if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63]
    return sound if len(sound) == len(values) else []


def _whole(metadata: Mapping[str, Any], key: str) -> int | None:
    """Return a count; the largest if there is one per layer."""
    return max(_counts(metadata, key), default=None)


def _per_layer(metadata: Mapping[str, Any], key: str) -> int | list[int] | None:
    """Return a count, or a list with one per layer if the layers differ."""
    counts = _counts(metadata, key)
    return counts if len(set(counts)) > 1 else (counts[0] if counts else None)


# --- quantization and tier -------------------------------------------------------------------------------------------


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
    number = _whole(metadata, "general.file_type")
    said = _FILE_TYPES.get(number & ~_GUESSED) if number is not None else None
    said_tier = tier_of(said) if said else None
    tokens = [_quant_name(match.group(0)) for match in QUANT_TOKEN.finditer(stem_of(path))]
    warnings = []
    if tokens:
        # A name may contain several quantizations (Q4_K_M-f16-embed): use the last one that fits the measurement.
        name = next((token for token in reversed(tokens) if _is_plausible(tier_of(token), bits)), tokens[-1])
        tier = tier_of(name)
        if not _is_plausible(tier, bits):
            warnings.append(f"tier: the file name says {name}, the tensors measure {bits} bits per weight")
        if said and said_tier != tier:
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


# --- what a file is --------------------------------------------------------------------------------------------------


def kind_of(path: str, metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """Return the kind: model, embedding, reranker or decision, or a companion's kind.

    Companions are mmproj, adapter, imatrix, vocab, draft and vocoder.
    """
    declared = _text(metadata, "general.type")
    architecture = _text(metadata, "general.architecture") or ""
    if declared == "mmproj" or architecture == "clip":
        return "mmproj"
    if declared == "adapter" or "adapter.type" in metadata or architecture == "controlvector":
        return "adapter"
    if declared == "imatrix" or architecture == "imatrix" or "imatrix.chunk_count" in metadata:
        return "imatrix"
    if not tensors or declared == "vocab":
        return "vocab"
    if architecture == "wavtokenizer-dec":
        return "vocoder"
    if architecture in _DRAFTS or _DRAFT_TOKEN.search(stem_of(path)):
        return "draft"
    if architecture in _DECISIONS:
        return "decision"
    pooling = _whole(metadata, f"{architecture}.pooling_type")
    if pooling == _POOLING_RANK:
        return "reranker"
    if architecture in _ENCODERS and pooling is None and any(tensor.name.startswith("cls.") for tensor in tensors):
        # A classifier head without a pooling type: llama-server can rerank with it but not compute embeddings.
        return "reranker"
    if architecture in _ENCODERS or (pooling is not None and pooling != _POOLING_NONE):
        return "embedding"
    return "model"


def _joined(files: Sequence[SourceFile], headers: Sequence[Header]) -> tuple[Header, tuple[Tensor, ...]]:
    """Return the first shard's header and the tensors of all shards. Raises ModelError."""
    first = headers[0]
    count = _whole(first.metadata, "split.count") or 0
    if len(files) == 1 and count > 1:
        raise ModelError(
            f"one of {count} shards, but its name is not NAME-{1:05}-of-{count:05}.gguf, so llama-server cannot find "
            "the others: rename the shards to that pattern"
        )
    if len(files) == 1:
        return first, first.tensors
    if count != len(files):
        says = f"split.count {count}" if count else "no split.count"
        raise ModelError(f"{os.path.basename(files[0].path)} has {says}, its name says {len(files)} shards")
    for index, (file, header) in enumerate(zip(files, headers)):
        number = _whole(header.metadata, "split.no")
        if number != index:
            raise ModelError(f"{os.path.basename(file.path)} has split.no {number}, its name says {index}")
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    expected = _whole(first.metadata, "split.tensors.count")
    if expected is not None and expected != len(tensors):
        raise ModelError(f"its {len(files)} shards hold {len(tensors)} tensors, split.tensors.count says {expected}")
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ModelError("two of its shards have a tensor of the same name")
    return first, tensors


def describe(files: Sequence[SourceFile], headers: Sequence[Header]) -> dict[str, Any]:
    """Return the record of a model or companion from its file, or from all its shards in order.

    Raises ModelError if llama-server cannot use it.
    """
    first, tensors = _joined(files, headers)
    metadata = first.metadata
    path = files[0].path
    architecture = _text(metadata, "general.architecture")
    named = files[0].alias or path
    kind = kind_of(named, metadata, tensors)
    if architecture is None and kind not in ("imatrix", "adapter"):
        raise ModelError("it has no key general.architecture, so it is not a model")
    if architecture is not None and not _ARCHITECTURE.match(architecture):
        raise ModelError(
            f"general.architecture is {clean_text(architecture, 40)!r}, which is not the name of an architecture"
        )
    quantization = quantization_of(named, metadata, tensors)
    common = {
        "kind": kind,
        "path": path,
        "files": [file.path for file in files],
        "size_bytes": sum(file.size for file in files),
        "shards": len(files),
        "architecture": architecture,
        "name": _short(metadata, "general.name"),
        "source": _short(metadata, *_SOURCES),
        **({"alias": files[0].alias} if files[0].alias else {}),
    }
    if kind not in SERVABLE:
        return {
            **common,
            "quantization": quantization.name,
            "parameter_count": sum(tensor.elements for tensor in tensors),
            "embedding_length": _projection(metadata, tensors)
            if kind == "mmproj"
            else _embedding(metadata, architecture),
            "projector_type": _short(metadata, "clip.projector_type", "clip.vision.projector_type"),
            "fingerprint": fingerprint_of(files),
        }
    prefix = f"{architecture}."
    sizes = {}
    for key in ("context_length", "embedding_length", "block_count"):
        sizes[key] = _whole(metadata, prefix + key)
        if sizes[key] is None:
            raise ModelError(f"it has no key {prefix}{key}, so llama-server cannot load it: it is not a language model")
    if (sizes["block_count"] or 0) > MAX_BLOCKS:
        raise ModelError(f"{prefix}block_count is {sizes['block_count']}; llama.cpp has no model of that many layers")
    warnings = list(quantization.warnings)
    try:
        memory = memory_shape(metadata, first.array_lengths, tensors)
    except MagiError as error:
        raise ModelError(str(error)) from None
    heads = _per_layer(metadata, prefix + "attention.head_count")
    heads_kv = _per_layer(metadata, prefix + "attention.head_count_kv")
    template = _text(metadata, "tokenizer.chat_template")
    if "tokenizer.chat_template" in first.text_lengths:
        warnings.append("chat template: it is longer than 1 MiB and was not read")
    return {
        "id": "",
        "display_name": _display_name(named, metadata, quantization.name),
        **common,
        "size_label": _short(metadata, "general.size_label"),
        "parameter_count": sum(tensor.elements for tensor in tensors),
        "quantization": quantization.name,
        "tier": quantization.tier,
        "bits_per_weight": quantization.bits_per_weight,
        **sizes,
        "head_count": heads if heads is not None else 0,
        # llama.cpp's default if the key is missing.
        "head_count_kv": heads_kv if heads_kv is not None else (heads if heads is not None else 0),
        "expert_count": _whole(metadata, prefix + "expert_count") or 0,
        "expert_used_count": _whole(metadata, prefix + "expert_used_count") or 0,
        "sliding_window": _whole(metadata, prefix + "attention.sliding_window") or 0,
        "tokenizer": _short(metadata, "tokenizer.ggml.model"),
        "chat_template_sha256": hashlib.sha256(template.encode("utf-8")).hexdigest() if template is not None else None,
        "base_model": _base_model(metadata),
        "license": _short(metadata, "general.license", "general.license.name"),
        "mmproj": None,
        "memory": memory,
        "fingerprint": fingerprint_of(files),
        "warnings": warnings,
    }


def _base_model(metadata: Mapping[str, Any]) -> str | None:
    """Return the first base model: its repository if given, else organization and name."""
    prefix = "general.base_model.0."
    name, owner = _short(metadata, prefix + "name"), _short(metadata, prefix + "organization")
    return _short(metadata, prefix + "repo_url") or (f"{owner}/{name}" if owner and name else name)


def _embedding(metadata: Mapping[str, Any], architecture: str | None) -> int | None:
    return _whole(metadata, f"{architecture}.embedding_length")


def _projection(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> int | None:
    """Return the embedding length of the models that a projector fits."""
    shapes = {tensor.name: tensor.shape for tensor in tensors if tensor.name.startswith("mm.")}
    for name, dimension in _PROJECTIONS:
        if len(shapes.get(name, ())) > dimension:
            return shapes[name][dimension]
    for key in ("clip.vision.projection_dim", "clip.audio.projection_dim", "clip.projection_dim"):
        value = _whole(metadata, key)
        if value:
            return value
    return None
