# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a llama-server binary is: its version, and the flags that it accepts, from its own --version and --help.

Used by the modules runtime and server_plan. llama.cpp renames and removes flags every few weeks and an unknown one is
fatal, so nothing here knows a list of flags: the binary is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from .._core.errors import MagiError


class FlagError(MagiError):
    """Raised for a parameter that cannot be rendered as a flag."""


class UnknownFlagError(FlagError):
    """Raised for a parameter that this binary has no flag for."""

    def __init__(self, key: str, nearest: Sequence[str] = (), reason: str | None = None) -> None:
        self.key = key
        self.nearest = list(nearest)
        text = reason or f'this llama-server has no flag "{key}"'
        if self.nearest:
            text += f"; nearest: {', '.join(self.nearest)}"
        super().__init__(text + ".")


class ManagedFlagError(FlagError):
    """Raised for a parameter that the collection sets itself, or that must not be on a command line."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        super().__init__(f'"{key}" cannot be set as a parameter: {reason}.')


class FlagValueError(FlagError):
    """Raised for a value that the flag does not accept."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        super().__init__(f'"{key}" {reason}.')


@dataclass(frozen=True)
class Flag:
    """One flag of one binary. Names are the long spellings in snake_case, without the dashes."""

    name: str
    spelling: str
    value: bool
    # Number of words that follow: almost always none or one.
    words: int = 0
    choices: tuple[str, ...] = ()
    # Accepts "auto" as well as numbers.
    auto: bool = False
    # Several values are joined with commas: if the flag is repeated, the last one wins.
    joined: bool = False
    negation: str | None = None
    # Other long names; those that begin with no_ mean the opposite when the flag has a negation.
    aliases: tuple[str, ...] = ()
    shorts: tuple[str, ...] = ()
    # Listed in the help only to name its replacement.
    removed: bool = False
    instead: tuple[str, ...] = ()

    def to_fact(self) -> dict[str, Any]:
        """The flag as plain data; empty values are omitted, because the fact holds 250 flags and is copied often."""
        fact: dict[str, Any] = {"spelling": self.spelling, "value": self.value}
        if self.words > 1:
            fact["words"] = self.words
        for key in ("choices", "aliases", "shorts", "instead"):
            if getattr(self, key):
                fact[key] = list(getattr(self, key))
        for key in ("auto", "joined", "removed", "negation"):
            if getattr(self, key):
                fact[key] = getattr(self, key)
        return fact

    @classmethod
    def from_fact(cls, name: str, fact: Mapping[str, Any]) -> Flag:
        """The reverse of to_fact."""
        value = bool(fact["value"])
        return cls(
            name=name,
            spelling=str(fact["spelling"]),
            value=value,
            words=int(fact.get("words", 1 if value else 0)),
            choices=tuple(fact.get("choices", ())),
            auto=bool(fact.get("auto", False)),
            joined=bool(fact.get("joined", False)),
            negation=fact.get("negation"),
            aliases=tuple(fact.get("aliases", ())),
            shorts=tuple(fact.get("shorts", ())),
            removed=bool(fact.get("removed", False)),
            instead=tuple(fact.get("instead", ())),
        )


Flags = Mapping[str, Union[Flag, Mapping[str, Any]]]


def flag_name(spelling: str) -> str:
    """The name of a flag as profiles write it: n_gpu_layers for --n-gpu-layers."""
    return spelling.lstrip("-").replace("-", "_")


def flags_to_fact(flags: Mapping[str, Flag]) -> dict[str, dict[str, Any]]:
    """The flags as plain data, sorted by name."""
    return {name: flags[name].to_fact() for name in sorted(flags)}


def flags_from_fact(fact: Flags) -> dict[str, Flag]:
    """The reverse of flags_to_fact; values that already are Flag objects are returned as they are."""
    return {name: flag if isinstance(flag, Flag) else Flag.from_fact(name, flag) for name, flag in fact.items()}
