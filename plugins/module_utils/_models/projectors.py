# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which projector belongs to which model of its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .names import QUANT_TOKEN, stem_of

# Warnings of a record begin with their topic. Those of this topic depend on a file's neighbours.
_PAIRING = "mmproj: "
# Projectors of this type (by its beginning) never belong to models of these architectures: their text-only siblings,
# which have the same width.
_NOT_FOR = (
    (("qwen2vl", "qwen2.5vl", "qwen3vl"), frozenset({"qwen2", "qwen2moe", "qwen3", "qwen3moe"})),
    (("gemma3", "gemma4"), frozenset({"gemma", "gemma2"})),
)
# A warning lists at most this many names.
_SHOWN = 4
_REMEDY = "name the right one as mmproj in the profile's parameters"


def pair_projectors(models: Sequence[dict[str, Any]], companions: Sequence[dict[str, Any]]) -> list[str]:
    """Set each model's mmproj and the warnings about it, from the projectors in its folder.

    A projector whose file name has words belongs to the models whose names have all of these words; one without words,
    such as mmproj-F16.gguf, belongs to any model that fits. Width and type (clip.projector_type) must fit too.

    Returns a message for each projector that has models in its folder but is not used by any of them.
    """
    folders: dict[str, _Folder] = {}
    for companion in sorted(companions, key=lambda record: str(record["path"])):
        if companion["kind"] == "mmproj":
            folders.setdefault(os.path.dirname(companion["path"]), _Folder()).projectors.append(_Named(companion))
    for model in models:
        folder = folders.get(os.path.dirname(model["path"]))
        if folder:
            folder.models.append(_Named(model))
        model["mmproj"] = None
        model["warnings"] = [warning for warning in model["warnings"] if not warning.startswith(_PAIRING)]
    unfit = []
    for folder in folders.values():
        unfit += folder.pair()
    return unfit


class _Named:
    """A record with the words of its file name, without quantization and purpose."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        stem = QUANT_TOKEN.sub("", stem_of(record.get("alias") or record["path"])).lower()
        purposes = {"mmproj", "model", "ggml", "vision", "audio", "projector"}
        self.words = frozenset(re.findall(r"[a-z0-9]+", stem)) - purposes
        # The same for all quantizations of one model.
        self.family = (record.get("architecture"), record.get("block_count"), record["embedding_length"], self.words)

    @property
    def name(self) -> str:
        return str(os.path.basename(self.record["path"]))

    @property
    def precision(self) -> str:
        return str(self.record["quantization"])

    def fits(self, model: _Named) -> bool:
        """Whether a projector is made for models of this width and architecture, as far as it is known."""
        if self.record["embedding_length"] not in (None, model.record["embedding_length"]):
            return False
        made_for = str(self.record.get("projector_type") or "")
        architecture = model.record.get("architecture")
        return not any(made_for.startswith(types) and architecture in others for types, others in _NOT_FOR)


class _Folder:
    """The models and projectors of one folder."""

    def __init__(self) -> None:
        self.models: list[_Named] = []
        self.projectors: list[_Named] = []

    def pair(self) -> list[str]:
        if not self.models:
            return []
        named: dict[_Named, list[_Named]] = {}
        nameless: dict[tuple[Any, ...], list[_Named]] = {}
        unused = []
        with_word: dict[str, set[int]] = {}
        for number, model in enumerate(self.models):
            for word in model.words:
                with_word.setdefault(word, set()).add(number)
        for item in self.projectors:
            if item.words:
                numbers = set.intersection(*(with_word.get(word, set()) for word in item.words))
                owners = [self.models[number] for number in sorted(numbers) if item.fits(self.models[number])]
                for model in owners:
                    named.setdefault(model, []).append(item)
                if not owners:
                    unused.append(self._unused(item))
            else:
                made_for = (item.record["embedding_length"], item.record.get("projector_type"))
                nameless.setdefault(made_for, []).append(item)
        others = {key: [model for model in self.models if items[0].fits(model)] for key, items in nameless.items()}
        families = {key: {model.family for model in models} for key, models in others.items()}
        unused += [self._unused(item) for key, items in nameless.items() if not others[key] for item in items]
        for key, models in others.items():
            for model in models:
                if model in named:
                    continue
                if len(families[key]) > 1:
                    fitting = _listed(nameless[key])
                    _warn(model, f"{fitting} fits several models in this folder, so none is used: {_REMEDY}")
                else:
                    named[model] = nameless[key]
        for model, items in named.items():
            _choose(model, items)
        return unused

    def _unused(self, item: _Named) -> str:
        path, width = item.record["path"], item.record["embedding_length"]
        if width is not None and all(model.record["embedding_length"] != width for model in self.models):
            return f"{path} is for models of width {width}, but its folder has no such model: it is not used"
        return f"{path} is named after a model that is not in its folder: it is not used. Rename it, or {_REMEDY}"


def _choose(model: _Named, items: Sequence[_Named]) -> None:
    """Give a model the one projector that belongs to it, or none where that is not clear."""
    if len({item.words for item in items}) > 1:
        # The one whose name has most of the model's words is closest.
        most = max(len(item.words) for item in items)
        items = [item for item in items if len(item.words) == most]
    if len({item.words for item in items}) > 1:
        _warn(model, f"{_listed(items)} fit, so none is used: {_REMEDY}")
        return
    # The same projector in several precisions.
    order = ("F16", "BF16", "Q8_0", "F32")
    best = min(items, key=lambda item: order.index(item.precision) if item.precision in order else 9)
    model.record["mmproj"] = best.record["path"]
    if len(items) > 1:
        _warn(model, f"{_listed(items)} fit, {best.name} is used: {_REMEDY} if this is wrong")


def _warn(model: _Named, text: str) -> None:
    model.record["warnings"].append(_PAIRING + text)


def _listed(items: Iterable[_Named]) -> str:
    names = [item.name for item in items]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
