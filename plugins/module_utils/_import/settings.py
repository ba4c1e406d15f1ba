# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A server of another program: what its settings become here, and what is left out, with the reason."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .._core.errors import MagiError
from .._runtime.flags import Flag
from .._runtime.render_flags import index_flags
from .._runtime.special_flags import DOWNLOAD_REASON, MANAGED_FLAGS, ON_OFF_FLAGS, PRESET_FLAG, RENAMED_FLAGS
from .known_flags import BUILD, OPPOSITES, known_flags

ENVIRONMENT = "LLAMA_ARG_"
# What the plan sets itself.
NO_HOME = "/nonexistent"
# Of the programs that start llama-server by its name.
_PROGRAM = re.compile(r"(.*/)?llama-server(\.exe)?")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
# --api-key=VALUE on a command line, and in a file a line with another separator than the format has.
_BEHIND_NAME = re.compile(r"[=:\s]")


class ImportFault(MagiError):
    """A source that nothing can be imported from. Nothing was written."""


@dataclass
class Server:
    """A server as found. model is the path of its file, empty if there is none; left_out are sentences' ends.

    alias, host, port and key_file are what it answers to, listens on and takes keys from, if it says so.
    """

    name: str
    model: str = ""
    alias: str = ""
    host: str = ""
    port: int | None = None
    key_file: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, key: str, value: str | None) -> None:
        """Take one setting over, by a flag's long or short name without dashes; value is None for a flag alone."""
        flag, is_opposite = find_flag(key)
        glued, key = key, shown(key)
        named = key.replace("-", "_")
        if flag is None and key != glued and find_flag(key)[0]:
            self.left_out.append(
                f"{key}: its value has to come after a space on a command line, and after = in a file."
            )
        elif flag is None:
            self.left_out.append(f"{key}: {_unknown(named)}")
        elif flag.name == "model" and value:
            self.model = value
        elif flag.name == "alias" and value:
            self.alias = value
        elif flag.name == "host" and value:
            self.host = value
        elif flag.name == "port" and value and value.isdecimal():
            self.port = int(value)
        elif flag.name == "api_key_file" and value:
            self.key_file = value
        elif reason := managed_reason(named, flag.name):
            self.left_out.append(f"{key}: {reason}.")
        elif not flag.value:
            self._add_switch(key, flag, value, is_opposite)
        elif value is None and flag.name in ON_OFF_FLAGS:
            self._set(flag, "on")
        elif value is None:
            self.left_out.append(f"{key}: it has no value.")
        else:
            self._set(flag, typed(value))

    def add_environment(self, name: str, value: str) -> None:
        """Take a variable over: those of llama-server are settings, the plan sets its own others."""
        if name.startswith(ENVIRONMENT):
            self.add(name[len(ENVIRONMENT) :].lower(), value)
        elif not name.startswith("MAGI_") and (name, value) != ("XDG_CONFIG_HOME", NO_HOME):
            self.left_out.append(f"the variable {shown(name)}: servers have no variables of their own.")

    def _add_switch(self, key: str, flag: Flag, value: str | None, is_opposite: bool) -> None:
        states = {None: True, "true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        state = states.get(value.lower() if value else value)
        if state is None:
            self.left_out.append(f"{key}: it takes true or false.")
        else:
            self._set(flag, state is not is_opposite)

    def _set(self, flag: Flag, value: Any) -> None:
        before = self.parameters.get(flag.name)
        if before is None or not flag.value:
            self.parameters[flag.name] = value
        else:
            # Repeated, such as --lora.
            self.parameters[flag.name] = [*(before if isinstance(before, list) else [before]), value]


@cache
def _index() -> dict[str, tuple[Flag, bool]]:
    flags = known_flags()
    shorts = {short: (flag, False) for flag in flags.values() for short in flag.shorts}
    long = index_flags(flags)
    return {**shorts, **{short: long[name] for short, name in OPPOSITES.items()}, **long}


def find_flag(key: str) -> tuple[Flag | None, bool]:
    """The flag of a name without dashes, and whether the name means its opposite; None for an unknown one."""
    index = _index()
    return index.get(key) or index.get(key.replace("-", "_")) or (None, False)


def shown(word: str) -> str:
    """The part of a word that messages may have: its name. What is behind it can be a key or a password."""
    return _BEHIND_NAME.split(word, maxsplit=1)[0]


def managed_reason(*names: str) -> str | None:
    """Why a flag is not for a profile; None if it is."""
    for name in names:
        if name in MANAGED_FLAGS:
            return MANAGED_FLAGS[name]
        if PRESET_FLAG.fullmatch(name):
            return DOWNLOAD_REASON
    return None


def _unknown(name: str) -> str:
    near = [*RENAMED_FLAGS.get(name, ())] or difflib.get_close_matches(name, _index(), n=2)
    return f"llama-server {BUILD} has no such flag{'; nearest: ' + ', '.join(near) if near else ''}."


def typed(value: str) -> Any:
    """A number where the text is one as written."""
    if _NUMBER.fullmatch(value):
        return int(value)
    return float(value) if _DECIMAL.fullmatch(value) else value


def parse_command(name: str, text: str) -> Server:
    """The server that a command line starts, as a shell or llama-swap has it. Raises ImportFault."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    try:
        words = shlex.split(" ".join(lines))
    except ValueError as error:
        raise ImportFault(f"{name}: the command line has open quotes: {error}. Nothing was written.") from None
    starts = [place for place, word in enumerate(words) if _PROGRAM.fullmatch(word)]
    if not starts and not (words and words[0].startswith("-")):
        raise ImportFault(
            f"{name}: the command line has no llama-server among its words. Nothing was written. Give the line that "
            "starts llama-server itself, or its flags alone."
        )
    server = Server(name)
    first = starts[0] if starts else -1
    _add_before(server, words[: max(first, 0)])
    _add_words(server, words[first + 1 :])
    return server


def _add_before(server: Server, words: Sequence[str]) -> None:
    """Variables, and another program that starts llama-server, of which only names are known."""
    for before, word in zip(("", *words), words, strict=False):
        if variable := _VARIABLE.fullmatch(word):
            server.add_environment(variable[1], variable[2])
        elif _is_flag(before) and "=" not in before and not _is_flag(word):
            # It can be the value of a flag of the other program: --password VALUE.
            continue
        elif word not in ("env", "exec", "sudo", "nohup"):
            server.left_out.append(f"{shown(word)}: it comes before llama-server.")


def _add_words(server: Server, words: Sequence[str]) -> None:
    place, last = 0, "llama-server"
    while place < len(words):
        word = words[place]
        place += 1
        if not _is_flag(word):
            # It can be a part of a value that has lost its quotes.
            server.left_out.append(f"a word after {last}: it belongs to no flag.")
            continue
        last = shown(word)
        flag, _is_opposite = find_flag(word.lstrip("-"))
        values: list[str] = []
        # Of an unknown one all that follows: it is not known how many words it takes.
        most = flag.words if flag else len(words)
        while len(values) < most and place < len(words) and not _is_flag(words[place]):
            values.append(words[place])
            place += 1
        if flag is not None and flag.words > 1 and values:
            server.parameters[flag.name] = [typed(value) for value in values]
        else:
            server.add(word.lstrip("-"), values[0] if values else None)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not re.fullmatch(r"-[0-9.].*", word)


def plain_settings(name: str, settings: Mapping[str, str]) -> Server:
    """The server of names and values, as a preset's section has them."""
    server = Server(name)
    for key, value in settings.items():
        if key.startswith(ENVIRONMENT):
            server.add_environment(key, value)
        else:
            server.add(key.lstrip("-"), value)
    return server
