# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Collect what is wrong and report it in one error: otherwise each mistake would take a run to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .._core.errors import EstimateError
from .._core.text import sentences
from .._runtime.flags import FlagError
from .inputs import PlanError

MAX_NAMED = 5
T = TypeVar("T")


class Problems:
    """Errors, in the order in which they were found; equal ones once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, *texts: str) -> None:
        self.texts += [text for text in dict.fromkeys(texts) if text not in self.texts]

    def attempt(self, call: Callable[..., T], *args: Any) -> T | None:
        """Return what a call returns, or None and add its error."""
        try:
            return call(*args)
        except (FlagError, EstimateError, PlanError) as error:
            self.add(str(error))
            return None

    def error(self) -> PlanError:
        return PlanError(sentences(self.texts))


def refuse_servers(profile: Mapping[str, Any], wrong: Mapping[str, Sequence[str]]) -> None:
    """Raise PlanError if a server has errors; one that several servers have in common is in the text once."""
    servers: dict[str, list[str]] = {}
    for name, texts in wrong.items():
        for text in texts:
            servers.setdefault(text, []).append(name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for text, names in servers.items():
        groups.setdefault(tuple(names), []).append(text)
    if groups:
        parts = [f"{_servers(names)}: {sentences(texts)}" for names, texts in groups.items()]
        capital = [f"{text[0].upper()}{text[1:]}" for text in parts[1:]]
        raise PlanError(" ".join([f'profile "{profile["name"]}" ({profile["source"]}), {parts[0]}', *capital]))


def _servers(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"server{'s' if len(names) > 1 else ''} {', '.join(names[:MAX_NAMED])}{more}"
