# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Ollama's store: each model is a JSON manifest, manifests/REGISTRY/NAMESPACE/MODEL/TAG, which names files in blobs.

A blob's file name is its digest, so that a model's name comes from its manifest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from typing import Any

from .names import QUANT_TOKEN

# A manifest names each layer and its kind; the config of a model names its quantization.
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_MANIFESTS = 10_000
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LAYER = "application/vnd.ollama.image."
_NAME_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_ollama_store(names: Collection[bytes]) -> bool:
    """Whether a folder with these names in it is Ollama's model store."""
    return b"manifests" in names and b"blobs" in names


def ollama_blobs(store: bytes) -> tuple[dict[bytes, str], dict[bytes, str]]:
    """The models and projectors of an Ollama store: each blob's path in it, and the file name from its manifest.

    The second dictionary has the manifests that cannot be used, by path, with the reason. A blob that several tags name
    has the most exact name: not that of `latest`, then the longest.
    """
    names: dict[bytes, list[str]] = {}
    reasons: dict[bytes, str] = {}
    for number, (path, model, tag) in enumerate(_ollama_manifests(os.path.join(store, b"manifests"))):
        if number == _MAX_MANIFESTS:
            reasons[path] = f"it is one of more than {_MAX_MANIFESTS} manifests in one store"
            break
        try:
            name, layers = _ollama_model(store, path, model, tag)
        except (OSError, ValueError) as error:
            reasons[path] = f"not a usable manifest of Ollama: {getattr(error, 'strerror', None) or error}"
            continue
        for prefix, digest in layers:
            names.setdefault(b"blobs/sha256-" + digest.encode(), []).append(f"{prefix}{name}.gguf")
    return {blob: max(found, key=lambda name: (len(name), name)) for blob, found in names.items()}, reasons


def _ollama_manifests(folder: bytes) -> Iterator[tuple[bytes, str, str]]:
    """The path, model and tag of each manifest, in order."""
    for registry in _subfolders(folder):
        for namespace in _subfolders(registry):
            for model in _subfolders(namespace):
                for tag in sorted(os.listdir(model)):
                    names = [os.path.basename(model).decode("ascii", "replace"), tag.decode("ascii", "replace")]
                    if all(_NAME_PART.fullmatch(name) for name in names):
                        yield os.path.join(model, tag), names[0], names[1]


def _subfolders(folder: bytes) -> list[bytes]:
    with os.scandir(folder) as found:
        return sorted(item.path for item in found if item.is_dir(follow_symlinks=False))


def _ollama_model(store: bytes, path: bytes, model: str, tag: str) -> tuple[str, list[tuple[str, str]]]:
    """The name of a manifest's model, and the digests of its model and projectors with each one's prefix of the name.

    Raises OSError and ValueError.
    """
    manifest = _json_object(path)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("it has no list of layers")
    prefixes = {_LAYER + "model": "", _LAYER + "projector": "mmproj-"}
    found = [
        (prefixes[layer["mediaType"]], _digest(layer.get("digest")))
        for layer in layers
        if layer.get("mediaType") in prefixes
    ]
    # The usual suffix of repositories on Hugging Face.
    name = re.sub(r"-gguf$", "", model, flags=re.IGNORECASE)
    if tag != "latest":
        name += f"-{tag}"
    if not QUANT_TOKEN.search(name):
        quantization = _ollama_quantization(store, manifest.get("config"))
        name += f"-{quantization}" if quantization else ""
    return name.lower(), found


def _ollama_quantization(store: bytes, config: Any) -> str:
    """The quantization that a model's config names; empty if it names none."""
    try:
        digest = _digest(config.get("digest") if isinstance(config, dict) else None)
        said = _json_object(os.path.join(store, b"blobs", b"sha256-" + digest.encode())).get("file_type")
    except (OSError, ValueError):
        return ""
    return said if isinstance(said, str) and QUANT_TOKEN.fullmatch(said) else ""


def _digest(value: Any) -> str:
    match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError("it names a layer by something that is not a SHA-256 digest")
    return match[1]


def _json_object(path: bytes) -> dict[str, Any]:
    """The JSON object in a small file that is not a link. Raises OSError and ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        text = stream.read(_MAX_MANIFEST_BYTES + 1)
    if len(text) > _MAX_MANIFEST_BYTES:
        raise ValueError(f"it is larger than {_MAX_MANIFEST_BYTES >> 20} MiB")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value
