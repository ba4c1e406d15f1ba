# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a server is made of: its llama-server, and the model files that it reads, as the scan has described them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.argv import PATH_FLAGS, flag_values


@dataclass(frozen=True)
class ModelFile:
    """sha256 is empty where the scan has none."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """A model, or a companion such as a projector, of the registry. Texts are empty and numbers 0 where it has none."""

    name: str
    kind: str
    files: tuple[ModelFile, ...]
    size_bytes: int
    architecture: str
    quantization: str
    bits_per_weight: float
    tier: str
    parameter_count: int
    context_length: int
    license: str
    base_model: str
    source: str


@dataclass(frozen=True)
class Build:
    """A llama-server: empty texts and None where it is not installed yet."""

    version: str
    build: int | None
    commit: str
    flavour: str
    sha256: str
    source: str


def parts_of(argv: Sequence[str], registry: Mapping[str, Any]) -> tuple[Part, ...]:
    """The records of the files in a command line, the model first."""
    records = {str(record["path"]): record for record in _records(registry)}
    paths = dict.fromkeys([*flag_values(argv, ["--model"]), *flag_values(argv, PATH_FLAGS)])
    return tuple(_part(records[path]) for path in paths if path in records)


def build_of(runtime: Mapping[str, Any]) -> Build:
    """The llama-server of the fact llama_runtime."""
    number = runtime.get("build")
    texts = {name: str(runtime.get(name) or "") for name in ("version", "commit", "flavour", "sha256", "source")}
    return Build(build=int(number) if number is not None else None, **texts)


def _records(registry: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    # A short fact has no files.
    models = [record for record in registry.get("models") or () if "files" in record]
    return [*models, *(registry.get("companions") or ())]


def _part(record: Mapping[str, Any]) -> Part:
    files = [str(path) for path in record["files"]]
    digests = [str(digest or "") for digest in record.get("sha256") or ()]
    digests += [""] * (len(files) - len(digests))
    own_name = files[0].rsplit("/", 1)[-1]
    return Part(
        name=str(record.get("id") or own_name),
        kind=str(record["kind"]),
        files=tuple(ModelFile(path, digest) for path, digest in zip(files, digests)),
        size_bytes=int(record.get("size_bytes") or 0),
        bits_per_weight=float(record.get("bits_per_weight") or 0),
        parameter_count=int(record.get("parameter_count") or 0),
        context_length=int(record.get("context_length") or 0),
        **{
            name: str(record.get(name) or "")
            for name in ("architecture", "quantization", "tier", "license", "base_model", "source")
        },
    )
