# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which projector belongs to which model of its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from .names import QUANT_TOKEN, stem_of
from .stores import stable_path

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
            folders.setdefault(_folder_of(companion), _Folder()).projectors.append(_Named(companion))
    for model in models:
        folder = folders.get(_folder_of(model))
        if folder:
            folder.models.append(_Named(model))
            folder.widths.add(model["embedding_length"])
        model["mmproj"] = None
        model["warnings"] = [warning for warning in model["warnings"] if not warning.startswith(_PAIRING)]
    unfit = []
    for folder in folders.values():
        unfit += folder.pair()
    return unfit


def _folder_of(record: dict[str, Any]) -> str:
    """The folder that a model shares with its projectors: snapshots of a repository in Hugging Face's cache are one.

    A file that a commit has not changed keeps the path of its earlier snapshot.
    """
    return os.path.dirname(stable_path(record["path"]))


class _Named:
    """A record with the words of its file name, without quantization and purpose."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        stem = QUANT_TOKEN.sub("", stem_of(record.get("alias") or record["path"])).lower()
        purposes = {"mmproj", "model", "ggml", "vision", "audio", "projector"}
        self.words = frozenset(re.findall(r"[a-z0-9]+", stem)) - purposes
        # Architectures that a projector of this type is not made for.
        made_for = str(record.get("projector_type") or "")
        self._excludes = frozenset(name for types, names in _NOT_FOR if made_for.startswith(types) for name in names)
        # The same for all quantizations of one model.
        self.family = (record.get("architecture"), record.get("block_count"), record["embedding_length"], self.words)

    @property
    def name(self) -> str:
        return str(os.path.basename(self.record["path"]))

    @property
    def precision(self) -> str:
        return str(self.record["quantization"])

    @property
    def made_for(self) -> tuple[Any, ...]:
        """What decides which models a projector fits: the same for all precisions of it."""
        return (self.words, self.record["embedding_length"], self._excludes)

    def fits(self, model: _Named) -> bool:
        """Whether a projector is made for models of this width and architecture, as far as it is known."""
        if self.record["embedding_length"] not in (None, model.record["embedding_length"]):
            return False
        return model.record.get("architecture") not in self._excludes


class _Folder:
    """The models and projectors of one folder."""

    def __init__(self) -> None:
        self.models: list[_Named] = []
        self.widths: set[Any] = set()
        self.projectors: list[_Named] = []

    def pair(self) -> list[str]:
        """Pair by groups of like files: a folder may have thousands of each. Returns messages for unused projectors."""
        families: dict[tuple[Any, ...], list[_Named]] = {}
        for model in self.models:
            families.setdefault(model.family, []).append(model)
        kinds = list(families.values())
        groups: dict[tuple[Any, ...], list[_Named]] = {}
        for item in self.projectors if kinds else ():
            groups.setdefault(item.made_for, []).append(item)
        # The one whose name has most of the model's words is closest.
        ordered = sorted(groups.values(), key=lambda items: -len(items[0].words))
        chosen, unused = self._by_name(kinds, [items for items in ordered if items[0].words])
        unused += self._by_width(kinds, [items for items in ordered if not items[0].words], chosen)
        choices: dict[tuple[int, ...], tuple[_Named | None, str]] = {}
        for number, found in chosen.items():
            key = tuple(id(items) for items in found)
            if key not in choices:
                choices[key] = _choose(found)
            best, warning = choices[key]
            for model in kinds[number]:
                model.record["mmproj"] = best.record["path"] if best else None
                if warning:
                    _warn(model, warning)
        return unused

    def _by_name(
        self, kinds: Sequence[Sequence[_Named]], groups: Sequence[list[_Named]]
    ) -> tuple[dict[int, list[list[_Named]]], list[str]]:
        """Return the groups that are closest by name to each kind of model, and messages for those of no model."""
        with_word: dict[str, set[int]] = {}
        for number, models in enumerate(kinds):
            for word in models[0].words:
                with_word.setdefault(word, set()).add(number)
        chosen: dict[int, list[list[_Named]]] = {}
        unused = []
        for items in groups:
            first = items[0]
            numbers = set.intersection(*(with_word.get(word, set()) for word in first.words))
            if not any(first.fits(kinds[number][0]) for number in numbers):
                unused += [self._unused(item) for item in items]
                continue
            for number in numbers:
                closer = number in chosen and len(chosen[number][0][0].words) > len(first.words)
                if not closer and first.fits(kinds[number][0]):
                    chosen.setdefault(number, []).append(items)
        return chosen, unused

    def _by_width(
        self,
        kinds: Sequence[Sequence[_Named]],
        groups: Sequence[list[_Named]],
        chosen: dict[int, list[list[_Named]]],
    ) -> list[str]:
        """Add groups without words in their names, where they fit the models of one kind; messages for unused ones."""
        of_width: dict[Any, list[int]] = {}
        for number, models in enumerate(kinds):
            of_width.setdefault(models[0].record["embedding_length"], []).append(number)
        unused, named = [], set(chosen)
        for items in groups:
            width = items[0].record["embedding_length"]
            numbers = range(len(kinds)) if width is None else of_width.get(width, [])
            fitting = [number for number in numbers if items[0].fits(kinds[number][0])]
            if not fitting:
                unused += [self._unused(item) for item in items]
            text = f"{_listed(items)} fits several models in this folder, so none is used: {_REMEDY}"
            for number in fitting:
                if number in named:
                    continue
                if len(fitting) == 1:
                    chosen.setdefault(number, [items])
                    continue
                for model in kinds[number]:
                    _warn(model, text)
        return unused

    def _unused(self, item: _Named) -> str:
        path, width = item.record["path"], item.record["embedding_length"]
        if width is not None and width not in self.widths:
            return f"{path} is for models of width {width}, but its folder has no such model: it is not used"
        return f"{path} is named after a model that is not in its folder: it is not used. Rename it, or {_REMEDY}"


def _choose(groups: Sequence[Sequence[_Named]]) -> tuple[_Named | None, str]:
    """Return the projector of equally close groups, None if that is unclear; and a warning or an empty text."""
    items = [item for group in groups for item in group]
    if len({item.words for item in items}) > 1:
        return None, f"{_listed(items)} fit, so none is used: {_REMEDY}"
    # The same projector in several precisions.
    order = ("F16", "BF16", "Q8_0", "F32")
    best = min(items, key=lambda item: order.index(item.precision) if item.precision in order else 9)
    return best, f"{_listed(items)} fit, {best.name} is used: {_REMEDY} if this is wrong" if len(items) > 1 else ""


def _warn(model: _Named, text: str) -> None:
    model.record["warnings"].append(_PAIRING + text)


def _listed(items: Sequence[_Named]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(item.name for item in items[:_SHOWN]) + more
