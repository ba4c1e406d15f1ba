# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The names that clients may ask for: ids of models, tiers, families, and the aliases of gateway_aliases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._models.quantization import TIERS
from .fleet import Backend, GatewayError, family_of

# A name has this many backends at most: HAProxy looks at one after another.
MAX_CANDIDATES = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")


def check_aliases(aliases: Mapping[str, Any]) -> None:
    """Raise GatewayError with all that is wrong in gateway_aliases."""
    wrong = [error for alias, targets in aliases.items() for error in _errors(str(alias), targets, aliases)]
    if wrong:
        raise GatewayError(" ".join(wrong))


def _errors(alias: str, targets: Any, aliases: Mapping[str, Any]) -> list[str]:
    where = f"gateway_aliases.{alias:.60}"
    if not _NAME.fullmatch(alias):
        return [f"{where}: a name has 1 to 128 letters, digits and . _ : / @ -"]
    if not isinstance(targets, (str, list, tuple, Mapping)) or not targets:
        return [f"{where} must be a model, a list of models, or weights by model."]
    errors = [
        f"{where} names the alias {target}: name its models instead."
        for target in targets_of(targets)
        if target in aliases
    ]
    if isinstance(targets, Mapping):
        errors += [
            f"{where}.{model}: a weight is a number above 0, not {weight!r:.40}."
            for model, weight in targets.items()
            if not _is_weight(weight)
        ]
    return errors


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def targets_of(targets: Any) -> list[str]:
    """The names that an alias may mean."""
    return [targets] if isinstance(targets, str) else [str(target) for target in targets]


def names_of(backends: Sequence[Backend], aliases: Mapping[str, Any], families: bool) -> dict[str, list[str]]:
    """Return the models behind each name, best first, and as many of them as a request may go to.

    An alias means any other name, or a list of them, best first. Raises GatewayError for an alias that is the id
    of a model.
    """
    found = names_in_full(backends, aliases, families)
    return {name: models[:MAX_CANDIDATES] for name, models in found.items()}


def names_in_full(backends: Sequence[Backend], aliases: Mapping[str, Any], families: bool) -> dict[str, list[str]]:
    """Return all models behind each name, best first. Raises GatewayError as names_of does."""
    names = _without_aliases(backends, families)
    ids = {backend.model_id for backend in backends}
    for alias, targets in sorted(aliases.items()):
        if alias in ids:
            raise GatewayError(f"gateway_aliases.{alias} is the id of a model: choose another name.")
        found = [model for target in targets_of(targets) for model in names.get(target, [])]
        if found:
            names[alias] = list(dict.fromkeys(found))
    return dict(sorted(names.items()))


def _without_aliases(backends: Sequence[Backend], families: bool) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for backend in sorted((one for one in backends if one.kind == "model"), key=_rank):
        if families:
            names.setdefault(family_of(backend.model_id), []).append(backend.model_id)
        if backend.tier:
            names.setdefault(backend.tier, []).append(backend.model_id)
    return {**names, **{backend.model_id: [backend.model_id] for backend in backends}}


def missing_targets(backends: Sequence[Backend], aliases: Mapping[str, Any], families: bool) -> list[str]:
    """Return a warning for each name in an alias that no server has at present."""
    names = _without_aliases(backends, families)
    return [
        f"gateway_aliases.{alias}: no server has {target}; there are {', '.join(sorted(names)[:20]) or 'none'}."
        for alias, targets in sorted(aliases.items())
        for target in targets_of(targets)
        if target not in names
    ]


def split_names(
    backends: Sequence[Backend], aliases: Mapping[str, Any], families: bool
) -> dict[str, list[tuple[str, int]]]:
    """Return the models of each alias that is split by weight, each with its share in percent; they sum up to 100.

    A weight may be that of any name, and is its best model's. Names that no server has get no share.
    """
    names = _without_aliases(backends, families)
    found = {}
    for alias, targets in sorted(aliases.items()):
        if isinstance(targets, Mapping):
            weights = {names[str(name)][0]: float(weight) for name, weight in targets.items() if str(name) in names}
            if weights:
                found[alias] = _percent(weights)
    return found


def _percent(weights: Mapping[str, float]) -> list[tuple[str, int]]:
    """Whole percent of each, by the largest remainder."""
    total = sum(weights.values())
    exact = {model: 100 * weight / total for model, weight in weights.items()}
    shares = {model: int(value) for model, value in exact.items()}
    for model in sorted(exact, key=lambda model: shares[model] - exact[model])[: 100 - sum(shares.values())]:
        shares[model] += 1
    return list(shares.items())


def _rank(backend: Backend) -> tuple[int, str]:
    """Highest quality first."""
    return (-TIERS.index(backend.tier) if backend.tier in TIERS else 1, backend.model_id)
