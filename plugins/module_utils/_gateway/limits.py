# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What gateway_models says of single models: how many requests may wait, and how long what may take."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .fleet import Backend, GatewayError

# The largest number of each. HAProxy's own limit of a time-out is 24 days.
_MOST = {"max_queue": 100_000, "queue_timeout": 86_400, "answer_timeout": 86_400, "hang_timeout": 3600}


@dataclass(frozen=True)
class Limits:
    """Of one model: requests that may wait, and seconds that a request may wait and a server may be silent.

    hang_timeout is for how many seconds a server may be busy with one batch; 0 is what is known of the server.
    """

    max_queue: int
    queue_timeout: int
    answer_timeout: int
    hang_timeout: int

    @classmethod
    def common(cls, settings: Any) -> Limits:
        """Those of every model, from a gateway's settings."""
        return cls(**{key: getattr(settings, key) for key in _MOST})


def check_models(models: Mapping[str, Any]) -> None:
    """Raise GatewayError with all that is wrong in gateway_models."""
    wrong = [error for name, entry in models.items() for error in _errors(f"gateway_models.{name!s:.60}", entry)]
    if wrong:
        raise GatewayError(" ".join(wrong))


def _errors(where: str, entry: Any) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"{where} must be a mapping with {', '.join(_MOST)}."]
    errors = []
    for key, value in entry.items():
        if key not in _MOST:
            near = difflib.get_close_matches(str(key), _MOST, 1)
            meant = f", did you mean {near[0]}" if near else ""
            errors.append(f"{where}: unknown {key!s:.40}{meant}; there are {', '.join(_MOST)}.")
        elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST[key]:
            errors.append(f"{where}.{key} must be a whole number from 1 to {_MOST[key]}, not {value!r:.40}.")
    return errors


def limits_of(
    common: Limits,
    models: Mapping[str, Mapping[str, int]],
    names: Mapping[str, Sequence[str]],
    backends: Sequence[Backend],
) -> dict[str, Limits]:
    """Return each model's limits by its id. A name may be any that clients use, and is valid for all of its models.

    What is said of a name with fewer models counts more, and what is said of the model's id most.
    """
    found = {backend.model_id: common for backend in backends}
    for name in sorted(models, key=lambda name: (name in found, -len(names.get(name, ())), name)):
        for model in names.get(name, ()):
            found[model] = replace(found[model], **models[name])
    return found


def missing_models(models: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a warning for each name in gateway_models that no server has at present."""
    known = ", ".join(sorted(names)[:20]) or "none"
    return [
        f"gateway_models.{name}: no server has it; there are {known}." for name in sorted(models) if name not in names
    ]
