# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Parameters of a profile as flags of the very llama-server that is to run."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from .._core.text import sentences
from .flags import (
    Flag,
    FlagError,
    Flags,
    FlagValueError,
    ManagedFlagError,
    UnknownFlagError,
    flag_name,
    flags_from_fact,
)
from .special_flags import DOWNLOAD_REASON, MANAGED_FLAGS, ON_OFF_FLAGS, PRESET_FLAG, RENAMED_FLAGS, SYNONYMS


def canonical_parameters(parameters: Mapping[str, Any], flags: Flags) -> dict[str, Any]:
    """Return the parameters under this binary's canonical names, with negated names turned into positive ones.

    So {"gpu_layers": 9, "no_mmap": true} becomes {"n_gpu_layers": 9, "mmap": false} if the binary uses these names.
    Without flags the parameters are returned as they are. Raises FlagError.
    """
    result, errors = known_parameters(parameters, flags)
    if errors:
        # Those that rendering would refuse later.
        _raise_all([*(error for error in map(_managed_error, parameters) if error), *errors])
    return result


def known_parameters(parameters: Mapping[str, Any], flags: Flags) -> tuple[dict[str, Any], list[FlagError]]:
    """Return the parameters that this binary knows as canonical_parameters does, and what is wrong with the others."""
    return _canonical(parameters, flags_from_fact(flags)) if flags else (dict(parameters), [])


def valid_parameters(parameters: Mapping[str, Any], flags: Flags) -> tuple[dict[str, Any], list[FlagError]]:
    """Return the parameters that can be rendered, under their canonical names, and what is wrong with all others."""
    valid, _argv, errors = _rendered(parameters, flags)
    return valid, errors


def _canonical(parameters: Mapping[str, Any], known: Mapping[str, Flag]) -> tuple[dict[str, Any], list[FlagError]]:
    """Return the parameters that this binary knows, under its canonical names, and what is wrong with the others."""
    index = index_flags(known)
    result: dict[str, Any] = {}
    errors: list[FlagError] = []
    for key, given in parameters.items():
        try:
            flag, inverted = _find(key, known, index)
        except UnknownFlagError as error:
            errors.append(error)
            continue
        value = not given if inverted and isinstance(given, bool) else given
        if flag.name in result and result[flag.name] != value:
            errors.append(
                FlagValueError(key, f"is set twice, also under another of its names (canonical: {flag.name})")
            )
        result[flag.name] = value
    return result, errors


def _raise_all(errors: Sequence[FlagError]) -> None:
    """Raise what is wrong, all at once: otherwise each would take a run to find."""
    if len(errors) > 1:
        raise FlagError(sentences([str(error) for error in errors]))
    if errors:
        raise errors[0]


def render_flags(parameters: Mapping[str, Any], flags: Flags) -> list[str]:
    """Render llama-server's long flags in snake_case as its arguments, sorted by name.

    flags is what parse_help returns, or the fact made from it. Without flags (nothing installed yet, check mode) all
    parameters are rendered unvalidated. Raises FlagError: UnknownFlagError, ManagedFlagError or FlagValueError.
    """
    _valid, argv, errors = _rendered(parameters, flags)
    _raise_all(errors)
    return argv


def _rendered(parameters: Mapping[str, Any], flags: Flags) -> tuple[dict[str, Any], list[str], list[FlagError]]:
    """Return the valid parameters under their canonical names, their arguments, and the errors of the others."""
    known = flags_from_fact(flags)
    # First, because for a managed flag this error is more useful than that it is unknown to this build.
    errors: list[FlagError] = [error for error in map(_managed_error, parameters) if error]
    own = {key: value for key, value in parameters.items() if not _managed_error(key)}
    canonical, wrong = _canonical(own, known) if flags else (own, [])
    errors += wrong
    valid: dict[str, Any] = {}
    argv: list[str] = []
    for name in sorted(canonical):
        refused = _managed_error(name)
        if refused:
            errors.append(refused)
            continue
        try:
            argv += _render(known[name], canonical[name]) if flags else _render_unknown(name, canonical[name])
        except FlagError as error:
            errors.append(error)
            continue
        valid[name] = canonical[name]
    return valid, argv, errors


def has_flag(name: str, flags: Flags) -> bool:
    """Return whether this binary accepts a parameter of this name; false without flags."""
    if not flags:
        return False
    found = index_flags(flags_from_fact(flags)).get(name)
    return found is not None and not found[0].removed


def _managed_error(key: str) -> ManagedFlagError | None:
    reason = MANAGED_FLAGS.get(key) or (DOWNLOAD_REASON if PRESET_FLAG.fullmatch(key) else None)
    return ManagedFlagError(key, reason) if reason else None


def index_flags(flags: Mapping[str, Flag]) -> dict[str, tuple[Flag, bool]]:
    """Return every accepted name of a flag, and whether it means the opposite."""
    index: dict[str, tuple[Flag, bool]] = {}
    for flag in flags.values():
        for alias in flag.aliases:
            index[alias] = (flag, bool(flag.negation) and alias.startswith("no_"))
        if flag.negation:
            index[flag_name(flag.negation)] = (flag, True)
        elif not flag.value:
            # A switch with only one spelling: its opposite is to omit it.
            opposite = flag.name[3:] if flag.name.startswith("no_") else "no_" + flag.name
            index.setdefault(opposite, (flag, True))
    # A flag's own name wins over another's alias or opposite.
    index.update({name: (flag, False) for name, flag in flags.items()})
    for group in SYNONYMS:
        present = next((index[name] for name in group if name in index and not index[name][0].removed), None)
        for name in group if present else ():
            index.setdefault(name, present)  # type: ignore[arg-type]
    return index


def _find(key: str, flags: Mapping[str, Flag], index: Mapping[str, tuple[Flag, bool]]) -> tuple[Flag, bool]:
    """Return the flag for a key, and whether the key means its opposite. Raises UnknownFlagError."""
    if key in index:
        flag, inverted = index[key]
        if flag.removed:
            raise UnknownFlagError(key, flag.instead, f'"{key}" was removed from this llama-server')
        return flag, inverted
    became = [name for name in RENAMED_FLAGS.get(key, ()) if name in index and not index[name][0].removed]
    if became:
        raise UnknownFlagError(key, became)
    plain = key.lstrip("-").replace("-", "_")
    short = next((name for name, flag in flags.items() if plain in flag.shorts or plain == name), None)
    if short:
        raise UnknownFlagError(key, [short], f'"{key}" is not a long flag in snake_case')
    candidates = [name for name, (flag, _inverted) in index.items() if not flag.removed]
    raise UnknownFlagError(key, difflib.get_close_matches(plain, candidates, n=3, cutoff=0.6))


def _render(flag: Flag, value: Any) -> list[str]:
    if value is None:
        return []
    if not flag.value:
        return _render_switch(flag, value)
    if value == "auto" and flag.name in ("n_gpu_layers", "gpu_layers") and not flag.auto:
        # Older builds accept only a number; without one they offload what fits, or nothing.
        return []
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        return []
    words = [_word(flag, item) for item in values]
    if flag.words > 1:
        if len(words) != flag.words:
            raise FlagValueError(flag.name, f"takes {flag.words} values as a list, not {len(words)}")
        return [flag.spelling, *words]
    if flag.joined:
        return [flag.spelling, ",".join(words)]
    return [part for word in words for part in (flag.spelling, word)]


def _render_switch(flag: Flag, value: Any) -> list[str]:
    # Newer builds take on, off and auto here: one profile works on hosts with old and new builds.
    state = {"on": True, "off": False, "auto": None}.get(value, value) if isinstance(value, str) else value
    if state is True:
        return [flag.spelling]
    if state is False:
        return [flag.negation] if flag.negation else []
    if state is None:
        return []
    raise FlagValueError(flag.name, f"takes true or false, not {value!r}")


def _word(flag: Flag, value: Any) -> str:
    """Return a value as one word, checked against the flag's choices."""
    if isinstance(value, bool):
        for true, false in (("on", "off"), ("1", "0"), ("true", "false")):
            if true in flag.choices and false in flag.choices:
                return true if value else false
        raise FlagValueError(flag.name, f"takes a value, not {str(value).lower()}")
    word = _text(flag.name, value)
    if flag.choices and word not in flag.choices:
        raise FlagValueError(flag.name, f"takes one of {', '.join(flag.choices)}, not {word}")
    return word


def _text(key: str, value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FlagValueError(key, f"takes a number, not {value}")
        # 4096.0 and 4096 are the same value, and 1e-05 is written as 0.00001.
        return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    if not isinstance(value, (str, int)):
        raise FlagValueError(key, f"takes text, a number, true or false, a list or a mapping, not {value!r}")
    if "\0" in str(value):
        raise FlagValueError(key, "contains a NUL byte, which a command line cannot contain")
    return str(value)


def _render_unknown(key: str, value: Any) -> list[str]:
    """Render without known flags, for the plan of a host where llama-server is not installed yet."""
    argv: list[str] = []
    spelling = "--" + key.replace("_", "-")
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, bool) and key in ON_OFF_FLAGS:
            argv += [spelling, "on" if item else "off"]
        elif item is True:
            argv.append(spelling)
        elif item is not None and item is not False:
            argv += [spelling, _text(key, item)]
    return argv
