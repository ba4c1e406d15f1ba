# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Profiles: which models of a registry get a server, and with which parameters.

Used by the action plugin profile (validation, on the controller) and the module server_plan (selection, on the host).
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._core.errors import MagiError
from .._core.text import sentences
from .._core.values import MAX_PORT

SELECTORS = ("tier", "architecture", "kind", "id")
TIERS = ("Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "F16", "F32")
KINDS = ("model", "embedding", "reranker", "decision")
START_DEFAULTS: dict[str, Any] = {"concurrent": True, "max_startup_time": 120, "readiness_check_interval": 2}
# Seconds without a request after which a server that was started on demand is stopped.
IDLE_STOP = 900

_PROFILE_KEYS = ("description", "enabled_models", "parameters", "memory_budget", "start")
_ENTRY_KEYS = ("model", *SELECTORS, "instances", "port", "cpu_share", "parameters", "start")
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)
MAX_SIZE_LENGTH = 32
# A day: no server starts more slowly, and no one wants to wait longer between two probes.
MAX_SECONDS = 86_400
# How much more or less of the cores than another server one may get.
MIN_SHARE, MAX_SHARE = 0.01, 100
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

Model = Mapping[str, Any]


class ProfileError(MagiError):
    """A profile that cannot be used: names the profile's file, the key and what is valid there."""


class Selected(NamedTuple):
    """A server that a profile wants: of which model's record, the number of the instance, and its entry's values."""

    model: Model
    instance: int
    parameters: dict[str, Any]
    cpu_share: float = 1.0
    port: int | None = None
    key: str = ""
    on_demand: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Selection:
    """What a profile picks on a host, in order of priority.

    missing maps the explicitly named model ids that this registry lacks to the key that names them.
    """

    servers: tuple[Selected, ...]
    missing: dict[str, str]


def misspelled(word: str, valid: Iterable[str]) -> list[str]:
    """The valid names that word is a typing error of: one or two letters differ, and no digit.

    A digit is a size, a version or a quantization: qwen3-32b is not a misspelled qwen3-8b, but another model.
    """
    limit = 2 if len(word) >= 8 else 1
    digits = re.findall(r"[0-9]+", word)
    return [
        name for name in sorted(set(valid)) if re.findall(r"[0-9]+", name) == digits and _is_within(word, name, limit)
    ]


def _is_within(one: str, other: str, limit: int) -> bool:
    """Whether so few letters have to be inserted, removed, replaced or swapped to turn one text into the other."""
    if abs(len(one) - len(other)) > limit:
        return False
    before: list[int] = []
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        above, before, row = before, row, [at]
        for to, wanted in enumerate(other, 1):
            cost = min(before[to] + 1, row[to - 1] + 1, before[to - 1] + (letter != wanted))
            if at > 1 and to > 1 and letter == other[to - 2] and one[at - 2] == wanted:
                cost = min(cost, above[to - 2] + 1)
            row.append(cost)
    return row[-1] <= limit


def near(word: str, valid: Iterable[str]) -> list[str]:
    """The valid names that word may be a misspelling of, nearest first."""
    return difflib.get_close_matches(str(word), sorted({str(name) for name in valid}), n=3, cutoff=0.6)


def nearest(word: str, valid: Iterable[str]) -> str:
    """A clause that offers the nearest valid names, or lists all of them if none is near."""
    names = sorted({str(name) for name in valid})
    close = near(word, names)
    if close:
        return "did you mean " + " or ".join(f'"{name}"' for name in close) + "?"
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"valid are: {shown or 'none'}"


def parse_size(value: Any) -> int:
    """Bytes in a size: 8GiB, 512M, 1.5TB or a plain number; M and MiB are 1024², MB is 1000². Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int):
        size = value
    elif len(str(value)) > MAX_SIZE_LENGTH:
        raise ValueError(value)
    else:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            raise ValueError(value)
        decimal = str(value).strip().upper().endswith("B") and not match["binary"]
        size = int(float(match["number"]) * (1000 if decimal else 1024) ** _POWERS[match["unit"].upper()])
    if not 0 < size < 1 << 63:
        raise ValueError(value)
    return size


def _check_keys(mapping: Any, valid: Sequence[str], wrong: list[str], prefix: str) -> dict[str, Any]:
    if not isinstance(mapping, Mapping):
        wrong.append(f"{prefix or 'the file'} must be a mapping, not {_kind_of(mapping)}.")
        return {}
    for key in mapping:
        if key not in valid:
            name = f"{prefix}.{key}" if prefix else str(key)
            wrong.append(f'unknown key "{name}": {nearest(str(key), valid)}')
    return dict(mapping)


def _kind_of(value: Any) -> str:
    names = ((type(None), "empty"), (bool, "a boolean"), (Mapping, "a mapping"), (str, "a string"), (int, "a number"))
    return next((name for kind, name in names if isinstance(value, kind)), f"a {type(value).__name__}")


def _check_parameters(value: Any, wrong: list[str], prefix: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        wrong.append(f"{prefix} must be a mapping of llama-server's long flags, not {_kind_of(value)}.")
        return {}
    for key, setting in value.items():
        if isinstance(key, (int, float)) and setting is None:
            # {tensor_split: 3,1} is {tensor_split: 3, 1: null} in YAML.
            wrong.append(
                f"{prefix}.{key}: a number is not a flag. In braces a comma separates keys: quote the value "
                'before it, as in {tensor_split: "3,1"}.'
            )
            continue
        if not isinstance(key, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", key):
            fixed = str(key).lstrip("-").replace("-", "_").lower()
            wrong.append(f'{prefix}.{key}: write the flag in snake_case without dashes: "{fixed}".')
        # A mapping becomes JSON, as chat_template_kwargs takes it.
        values = setting if isinstance(setting, (list, tuple)) else []
        if any(isinstance(item, (Mapping, list, tuple)) for item in values):
            wrong.append(f"{prefix}.{key}: a flag takes a scalar, a list of scalars or a mapping.")
    return dict(value)


def _check_entry(entry: Any, wrong: list[str], prefix: str) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = {"model": entry}
    before = len(wrong)
    entry = _check_keys(entry, _ENTRY_KEYS, wrong, prefix)
    selector = {key: str(entry[key]) for key in SELECTORS if key in entry}
    # An unknown key may be the misspelled selector.
    if ("model" in entry) == bool(selector) and len(wrong) == before:
        wrong.append(f"{prefix} needs either model (an id from the registry) or a selector ({', '.join(SELECTORS)}).")
    for key, valid in (("tier", TIERS), ("kind", KINDS)):
        if key in selector and selector[key] not in valid:
            wrong.append(f'{prefix}.{key}: unknown {key} "{selector[key]}": {nearest(selector[key], valid)}')
    instances = entry.get("instances", 1)
    if isinstance(instances, bool) or not isinstance(instances, int) or instances < 1:
        wrong.append(f"{prefix}.instances must be a whole number of at least 1, not {instances!r:.40}.")
    return {
        "model": str(entry["model"]) if "model" in entry else None,
        "selector": selector,
        "instances": instances,
        "port": _check_port(entry.get("port"), wrong, f"{prefix}.port"),
        "cpu_share": _check_share(entry.get("cpu_share", 1), wrong, f"{prefix}.cpu_share"),
        "parameters": _check_parameters(entry.get("parameters"), wrong, f"{prefix}.parameters"),
        "on_demand": _check_on_demand(entry.get("start"), wrong, f"{prefix}.start"),
        "key": prefix,
    }


def _check_port(value: Any, wrong: list[str], prefix: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PORT):
        return value
    wrong.append(f"{prefix} must be a port, a whole number from 1 to {MAX_PORT}, not {value!r:.40}.")
    return None


def _check_share(value: Any, wrong: list[str], prefix: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not MIN_SHARE <= value <= MAX_SHARE:
        wrong.append(f"{prefix} must be a number from {MIN_SHARE} to {MAX_SHARE}, not {value!r:.40}.")
        return 1.0
    return float(value)


def _check_on_demand(value: Any, wrong: list[str], prefix: str) -> dict[str, Any] | None:
    """Return {"idle_stop": seconds or None for never, "pinned"} of an entry that is started on demand."""
    start = _check_keys(value or {}, ("on_demand", "idle_stop", "pinned"), wrong, prefix)
    for key in ("on_demand", "pinned"):
        if not isinstance(start.get(key, False), bool):
            wrong.append(f"{prefix}.{key} must be true or false, not {start[key]!r:.40}.")
    if not start.get("on_demand"):
        wrong += [
            f"{prefix}.{key} needs on_demand: true next to it." for key in ("idle_stop", "pinned") if key in start
        ]
        return None
    pinned = start.get("pinned", False)
    if pinned and "idle_stop" in start:
        wrong.append(f"{prefix}.idle_stop: a pinned server is not stopped when idle; leave one out.")
    seconds = start.get("idle_stop", IDLE_STOP)
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 0 < seconds <= MAX_SECONDS:
        wrong.append(
            f"{prefix}.idle_stop must be a whole number of seconds above 0, {MAX_SECONDS} at most, not {seconds!r:.40}."
        )
    return {"idle_stop": None if pinned else seconds, "pinned": pinned}


def _check_start(value: Any, wrong: list[str]) -> dict[str, Any]:
    start = {**START_DEFAULTS, **_check_keys(value or {}, tuple(START_DEFAULTS), wrong, "start")}
    if not isinstance(start["concurrent"], bool):
        wrong.append(f"start.concurrent must be true or false, not {start['concurrent']!r}.")
    # supervisor counts in whole seconds.
    for key, kinds, what in (
        ("max_startup_time", (int,), "a whole number"),
        ("readiness_check_interval", (int, float), "a number"),
    ):
        seconds = start[key]
        if isinstance(seconds, bool) or not isinstance(seconds, kinds) or not 0 < seconds <= MAX_SECONDS:
            wrong.append(f"start.{key} must be {what} of seconds above 0, {MAX_SECONDS} at most, not {seconds!r:.40}.")
    return start


def _check_named_once(enabled: Sequence[Mapping[str, Any]], wrong: list[str]) -> None:
    first_named: dict[str, str] = {}
    for entry in enabled:
        if entry["model"] is not None and first_named.setdefault(entry["model"], entry["key"]) != entry["key"]:
            wrong.append(
                f'{entry["key"]} names "{entry["model"]}" again, after {first_named[entry["model"]]}: '
                "for more servers of one model set its instances."
            )


def _check_budget(value: Any, wrong: list[str]) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError:
        wrong.append(f"memory_budget must be a size such as 8GiB or 512M, not {value!r:.40}.")
        return None


def validate(name: str, source: str, data: Any) -> dict[str, Any]:
    """The profile read from the file source, checked against the schema, with every default filled in.

    Returns {"name", "source", "description", "enabled_models": [{"model" or None, "selector", "instances",
    "port", "cpu_share", "parameters", "on_demand", "key"}], "parameters", "memory_budget_bytes": bytes or None,
    "start"}. Raises ProfileError with everything that is wrong.
    """
    wrong: list[str] = []
    profile = _check_keys(data, _PROFILE_KEYS, wrong, "")
    entries = profile.get("enabled_models")
    if isinstance(entries, (list, tuple)) and entries:
        enabled = [_check_entry(entry, wrong, f"enabled_models[{index}]") for index, entry in enumerate(entries)]
        _check_named_once(enabled, wrong)
    else:
        enabled = []
        # An unknown key may be the misspelled one, and a file that is not a mapping has no keys.
        if not wrong:
            wrong.append("enabled_models must be a list of at least one model id or selector.")
    valid = {
        "name": name,
        "source": source,
        "description": str(profile.get("description") or ""),
        "enabled_models": enabled,
        "parameters": _check_parameters(profile.get("parameters"), wrong, "parameters"),
        "memory_budget_bytes": _check_budget(profile.get("memory_budget"), wrong),
        "start": _check_start(profile.get("start"), wrong),
    }
    if wrong:
        raise ProfileError(f'profile "{name}" ({source}): {sentences(wrong)}')
    return valid


def matches(selector: Mapping[str, str], model: Model) -> bool:
    """Whether a model's record answers to every part of a selector; id is a shell pattern."""
    return all(
        fnmatch.fnmatchcase(str(model["id"]), wanted) if key == "id" else str(model.get(key)) == wanted
        for key, wanted in selector.items()
    )


def _port_of_instance(entry: Mapping[str, Any], instance: int) -> int | None:
    """Return the port that an entry sets: its own for the first instance, the ones after it for the others."""
    port: int | None = entry.get("port")
    return None if port is None else port + instance - 1


def select(profile: Mapping[str, Any], models: Sequence[Model]) -> Selection:
    """The servers that a validated profile wants of these registry records.

    A model gets the instances and parameters of the first entry that picks it; later ones add nothing.
    Selected models keep the registry's order. An explicit id wins over a selector before it.
    """
    by_id = {str(model["id"]): model for model in models}
    named = {entry["model"] for entry in profile["enabled_models"] if entry["model"] is not None}
    servers: list[Selected] = []
    missing: dict[str, str] = {}
    taken: set[str] = set()
    for entry in profile["enabled_models"]:
        if entry["model"] is not None:
            picked = [by_id[entry["model"]]] if entry["model"] in by_id else []
            if not picked:
                missing[entry["model"]] = entry["key"]
        else:
            picked = [
                model
                for model in models
                if model["id"] not in taken and model["id"] not in named and matches(entry["selector"], model)
            ]
        parameters = {**profile["parameters"], **entry["parameters"]}
        for model in picked:
            taken.add(model["id"])
            servers += [
                Selected(
                    model,
                    instance,
                    parameters,
                    entry["cpu_share"],
                    _port_of_instance(entry, instance),
                    entry["key"],
                    entry["on_demand"],
                )
                for instance in range(1, entry["instances"] + 1)
            ]
    return Selection(tuple(servers), missing)
