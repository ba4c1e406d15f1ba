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
from typing import Any

from .._core.errors import MagiError
from .._core.text import clean_text
from .gguf import Header, Tensor
from .memory_shape import memory_shape
from .metadata import per_layer, short_text, text_value, whole_number
from .names import QUANT_TOKEN, stem_of
from .quantization import Quantization, quantization_of
from .source_files import SourceFile, fingerprint_of

SERVABLE = ("model", "embedding", "reranker", "decision")

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


# Values of general.name that name no model.
_NO_NAMES = {"model", "models", "ggml-model", "gguf", "hf", "safetensors", "snapshot", "tmp", "checkpoint", "output"}
# Words in file names of embedding models and rerankers, such as Qwen3-Reranker-0.6B.
_RANKING_TOKEN = re.compile(r"(?:^|[-._ ])(embed(?:ding)?s?|rerank(?:er)?)(?:$|[-._ ])", re.IGNORECASE)
_BLOCK = re.compile(r"blk\.([0-9]+)\.")
_DRAFT_TOKEN = re.compile(r"(?:^|[-._ ])draft(?:$|[-._ ])", re.IGNORECASE)
_ARCHITECTURE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


# Metadata keys that name a file's source.
_SOURCES = ("general.repo_url", "general.url", "general.source.repo_url", "general.source.url")


class ModelError(MagiError):
    """Raised for a valid GGUF file that llama-server cannot use; the text is the reason."""


# --- names -----------------------------------------------------------------------------------------------------------


def _display_name(path: str, metadata: Mapping[str, Any], quantization: str) -> str:
    stem = stem_of(path)
    name = clean_text(text_value(metadata, "general.name") or "", 80)
    # Converters write a folder's or temporary file's name if the model card has none.
    if not re.search(r"[^\W\d_]{2}", name) or name.lower() in _NO_NAMES:
        name = clean_text(QUANT_TOKEN.sub("", stem), 80).strip("-._ ") or clean_text(stem, 80)
    if " " not in name:
        name = re.sub(r"[-_]+", " ", name).strip()
    if quantization and quantization.lower() not in name.lower():
        name = f"{name} ({quantization})"
    return name


# --- what a file is --------------------------------------------------------------------------------------------------


def kind_of(path: str, metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """Return the kind: model, embedding, reranker or decision, or a companion's kind.

    Companions are mmproj, adapter, imatrix, vocab, draft and vocoder.
    """
    declared = text_value(metadata, "general.type")
    architecture = text_value(metadata, "general.architecture") or ""
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
    if architecture in _DRAFTS or _DRAFT_TOKEN.search(stem_of(path)) or _lacks_first_block(tensors):
        return "draft"
    if architecture in _DECISIONS:
        return "decision"
    pooling = whole_number(metadata, f"{architecture}.pooling_type")
    if pooling == _POOLING_RANK:
        return "reranker"
    if architecture in _ENCODERS and pooling is None and any(tensor.name.startswith("cls.") for tensor in tensors):
        # A classifier head without a pooling type: llama-server can rerank with it but not compute embeddings.
        return "reranker"
    if architecture in _ENCODERS or (pooling is not None and pooling != _POOLING_NONE):
        return "embedding"
    return "model"


def _lacks_first_block(tensors: Sequence[Tensor]) -> bool:
    """Return whether there are blocks but not block 0, as in a file of prediction layers (MTP) without their model."""
    blocks = {match[1] for tensor in tensors if (match := _BLOCK.match(tensor.name))}
    return bool(blocks) and "0" not in blocks


def _joined(files: Sequence[SourceFile], headers: Sequence[Header]) -> tuple[Header, tuple[Tensor, ...]]:
    """Return the first shard's header and the tensors of all shards. Raises ModelError."""
    first = headers[0]
    count = whole_number(first.metadata, "split.count") or 0
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
        number = whole_number(header.metadata, "split.no")
        if number != index:
            raise ModelError(f"{os.path.basename(file.path)} has split.no {number}, its name says {index}")
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    expected = whole_number(first.metadata, "split.tensors.count")
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
    architecture = text_value(metadata, "general.architecture")
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
        "name": short_text(metadata, "general.name"),
        "source": short_text(metadata, *_SOURCES),
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
            "projector_type": short_text(metadata, "clip.projector_type", "clip.vision.projector_type"),
            "fingerprint": fingerprint_of(files),
        }
    return _model_record(common, files, first, tensors, quantization)


def _model_record(
    common: dict[str, Any],
    files: Sequence[SourceFile],
    first: Header,
    tensors: Sequence[Tensor],
    quantization: Quantization,
) -> dict[str, Any]:
    """Return the record of a model that llama-server can serve; common is what every record has."""
    metadata, named = first.metadata, files[0].alias or files[0].path
    prefix = f"{common['architecture']}."
    sizes = _sizes(metadata, prefix)
    warnings = [*quantization.warnings, *_kind_warnings(common["kind"], named, prefix)]
    try:
        memory = memory_shape(metadata, first.array_lengths, tensors)
    except MagiError as error:
        raise ModelError(str(error)) from None
    heads = per_layer(metadata, prefix + "attention.head_count")
    heads_kv = per_layer(metadata, prefix + "attention.head_count_kv")
    template = text_value(metadata, "tokenizer.chat_template")
    if "tokenizer.chat_template" in first.text_lengths:
        warnings.append("chat template: it is longer than 1 MiB and was not read")
    return {
        "id": "",
        "display_name": _display_name(named, metadata, quantization.name),
        **common,
        "size_label": short_text(metadata, "general.size_label"),
        "parameter_count": sum(tensor.elements for tensor in tensors),
        "quantization": quantization.name,
        "tier": quantization.tier,
        "bits_per_weight": quantization.bits_per_weight,
        **sizes,
        "head_count": heads if heads is not None else 0,
        # llama.cpp's default if the key is missing.
        "head_count_kv": heads_kv if heads_kv is not None else (heads if heads is not None else 0),
        "expert_count": whole_number(metadata, prefix + "expert_count") or 0,
        "expert_used_count": whole_number(metadata, prefix + "expert_used_count") or 0,
        "sliding_window": whole_number(metadata, prefix + "attention.sliding_window") or 0,
        "tokenizer": short_text(metadata, "tokenizer.ggml.model"),
        "chat_template_sha256": hashlib.sha256(template.encode("utf-8")).hexdigest() if template is not None else None,
        "base_model": _base_model(metadata),
        "license": short_text(metadata, "general.license", "general.license.name"),
        "mmproj": None,
        "memory": memory,
        "fingerprint": fingerprint_of(files),
        "warnings": warnings,
    }


def _sizes(metadata: Mapping[str, Any], prefix: str) -> dict[str, int]:
    """Return what every language model has. Raises ModelError."""
    sizes = {}
    for key in ("context_length", "embedding_length", "block_count"):
        value = whole_number(metadata, prefix + key)
        if value is None:
            raise ModelError(f"it has no key {prefix}{key}, so llama-server cannot load it: it is not a language model")
        sizes[key] = value
    if sizes["block_count"] > MAX_BLOCKS:
        raise ModelError(f"{prefix}block_count is {sizes['block_count']}; llama.cpp has no model of that many layers")
    return sizes


def _kind_warnings(kind: str, named: str, prefix: str) -> list[str]:
    """Return a warning for a file that is named an embedding model or reranker and does not say so itself."""
    word = _RANKING_TOKEN.search(stem_of(named))
    if kind != "model" or not word:
        return []
    parameter = "reranking" if word[1].lower().startswith("rerank") else "embedding"
    return [
        f"kind: the file name says {word[1]}, but {prefix}pooling_type is missing, so it is served as a model that "
        f"generates text; set {parameter}: true in the profile's parameters, or convert it again"
    ]


def _base_model(metadata: Mapping[str, Any]) -> str | None:
    """Return the first base model: its repository if given, else organization and name."""
    prefix = "general.base_model.0."
    name, owner = short_text(metadata, prefix + "name"), short_text(metadata, prefix + "organization")
    return short_text(metadata, prefix + "repo_url") or (f"{owner}/{name}" if owner and name else name)


def _embedding(metadata: Mapping[str, Any], architecture: str | None) -> int | None:
    return whole_number(metadata, f"{architecture}.embedding_length")


def _projection(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> int | None:
    """Return the embedding length of the models that a projector fits."""
    shapes = {tensor.name: tensor.shape for tensor in tensors if tensor.name.startswith("mm.")}
    for name, dimension in _PROJECTIONS:
        if len(shapes.get(name, ())) > dimension:
            return shapes[name][dimension]
    for key in ("clip.vision.projection_dim", "clip.audio.projection_dim", "clip.projection_dim"):
        value = whole_number(metadata, key)
        if value:
            return value
    return None
