# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which projector belongs to which model of its folder."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .names import QUANT_TOKEN, stem_of

# Warnings of a record begin with their topic. Those of this topic depend on a file's neighbours.
_PAIRING = "mmproj: "


def pair_projectors(models: Sequence[dict[str, Any]], companions: Sequence[dict[str, Any]]) -> list[str]:
    """Set every model's mmproj and its warnings about it, from the projectors in the same folder.

    Returns a sentence for each projector that is next to models and fits none of them.
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
    """A record with the words of its file's name, without those for its quantization and purpose."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        stem = QUANT_TOKEN.sub("", stem_of(record["path"])).lower()
        purposes = {"mmproj", "model", "ggml", "vision", "audio", "projector"}
        self.words = frozenset(re.findall(r"[a-z0-9]+", stem)) - purposes
        # The same for all quantizations of one model.
        self.family = (record.get("architecture"), record.get("block_count"), record["embedding_length"], self.words)

    @property
    def name(self) -> str:
        return str(os.path.basename(self.record["path"]))

    def fits(self, model: _Named) -> bool:
        return self.record["embedding_length"] in (None, model.record["embedding_length"])

    def is_related(self, other: _Named) -> bool:
        return bool(self.words and other.words) and (self.words <= other.words or other.words <= self.words)


class _Folder:
    """The models and projectors of one folder."""

    def __init__(self) -> None:
        self.models: list[_Named] = []
        self.projectors: list[_Named] = []

    def pair(self) -> list[str]:
        # Those that carry no model's name are for whichever fits.
        nameless = [item for item in self.projectors if not any(item.is_related(model) for model in self.models)]
        families = {item: {model.family for model in self.models if item.fits(model)} for item in nameless}
        for model in self.models:
            fitting = [item for item in self.projectors if item.fits(model)]
            named = [item for item in fitting if item.is_related(model)]
            others = [item for item in fitting if item in families]
            chosen, warning = self._choose(named, others, families)
            model.record["mmproj"] = chosen
            model.record["warnings"] += [_PAIRING + warning] if warning else []
        return [
            f"{item.record['path']} is for models of width {item.record['embedding_length']}, which no model in its "
            "folder has: none is given it"
            for item in self.projectors
            if self.models and not any(item.fits(model) for model in self.models)
        ]

    def _choose(
        self, named: Sequence[_Named], others: Sequence[_Named], families: Mapping[_Named, set[Any]]
    ) -> tuple[str | None, str | None]:
        remedy = "name the right one as mmproj in the profile's parameters"
        fitting = named or others
        names = ", ".join(item.name for item in fitting)
        different = set() if named else {family for item in others for family in itertools.islice(families[item], 2)}
        if len(different) > 1:
            return None, f"{names} fits several models in this folder, none is taken: {remedy}"
        if len(fitting) < 2:
            return (fitting[0].record["path"] if fitting else None), None
        if len({item.words for item in fitting}) > 1:
            return None, f"{names} fit, none is taken: {remedy}"
        # The same projector in several precisions.
        order = ("F16", "BF16", "Q8_0", "F32")
        best = min(fitting, key=lambda item: order.index(_precision(item)) if _precision(item) in order else 9)
        return best.record["path"], f"{names} fit, {best.name} is taken: {remedy} if it is another"


def _precision(item: _Named) -> str:
    return str(item.record["quantization"])
