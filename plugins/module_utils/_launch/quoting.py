# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Quoting for launch configs, so that a command line reaches the server exactly as planned.

A model's path is untrusted text: none of its characters may have a meaning for systemd or supervisor.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.errors import MagiError

SYSTEMD_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
SUPERVISOR_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


class QuoteError(MagiError):
    """Text that the service manager's file format cannot carry."""


def systemd_argv(argv: Sequence[str]) -> str:
    """A command line for ExecStart=, one flag a line."""
    if not argv:
        raise QuoteError("A server without a command line cannot be written as a systemd unit.")
    program = argv[0]
    # systemd takes the program's path literally and refuses these in it.
    if not program.startswith("/") or re.search(r"[\x00-\x1f\x7f\"'\\$]", program):
        raise QuoteError(
            f"The path of llama-server, {program!r}, cannot stand in a systemd unit: it must be absolute and without "
            "quotes, backslashes, dollar signs and control characters. Link the program to a plainer path."
        )
    words = [_systemd_word(program), *(_systemd_word(word.replace("$", "$$"), word) for word in argv[1:])]
    return _one_flag_a_line(words, " \\\n    ")


def systemd_environment(env: Mapping[str, str]) -> str:
    """Environment= lines, in the order of the names."""
    return "\n".join(f"Environment={_systemd_word(f'{name}={value}')}" for name, value in sorted(env.items()))


def systemd_paths(paths: Sequence[str]) -> str:
    """The paths of a setting like ReadOnlyPaths=, which knows quotes but no escapes for control characters."""
    for path in paths:
        if re.search(r"[\x00-\x1f\x7f]", path):
            raise QuoteError(f"The path {path!r} cannot stand in a systemd unit: it holds a control character.")
    return " ".join(_systemd_word(path) for path in paths)


def systemd_settings(settings: Mapping[str, Any]) -> str:
    """Key=value lines; a setting that is null or empty is left out, one that is a list gets a line for each entry."""
    lines = []
    for key, given in settings.items():
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if value is None or value == "":
                continue
            text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
            if re.search(r"[\x00-\x1f\x7f]", f"{key}{text}") or text.endswith("\\"):
                raise QuoteError(
                    f"The systemd setting {key} must be one line without a backslash at its end: {text!r}."
                )
            lines.append(f"{key}={text}")
    return "\n".join(lines)


def _systemd_word(text: str, original: str | None = None) -> str:
    """One word of a unit file: C escapes inside double quotes where needed, specifiers switched off."""
    text = text.replace("%", "%%")
    if SYSTEMD_PLAIN.fullmatch(text):
        return text
    if "\0" in text:
        raise QuoteError(f"The word {original or text!r} cannot stand in a systemd unit: it holds a NUL.")
    return '"' + "".join(_systemd_letter(letter) for letter in text) + '"'


def _systemd_letter(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if letter < " " or letter == "\x7f" or "\udc80" <= letter <= "\udcff":
        return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
    return letter


def supervisor_command(argv: Sequence[str]) -> str:
    """A command line for command=, one flag a line."""
    return _one_flag_a_line([_supervisor_word(word) for word in argv], "\n  ")


def supervisor_environment(env: Mapping[str, str]) -> str:
    """The value of environment=, in the order of the names."""
    pairs = []
    for name, value in sorted(env.items()):
        quote = "'" if '"' in value else '"'
        if quote in value or value.strip("'\"") != value:
            raise QuoteError(f"{name}={value!r} cannot stand in a supervisor program: it holds quotes.")
        pairs.append(f"{name}={quote}{supervisor_value(value)}{quote}")
    return ",".join(pairs)


def supervisor_value(text: str) -> str:
    """A plain value, such as a path: percent signs doubled."""
    # supervisor takes "#" and ";" after white space for a comment, and strips the ends.
    if re.search(r"[\x00-\x1f\x7f\udc80-\udcff]|(^|\s)[;#]|%\(", text) or text != text.strip():
        raise QuoteError(
            f"{text!r} cannot stand in a supervisor program: it has control characters, bytes that are not UTF-8, "
            'white space at its ends, "%(", or a word that begins with ";" or "#". Choose a plainer path.'
        )
    return text.replace("%", "%%")


def _supervisor_word(word: str) -> str:
    """One word for shlex, inside a configuration file that has comments, line folding and % expansions."""
    if re.search(r"[\0\r\udc80-\udcff]", word):
        raise QuoteError(
            f"{word!r} cannot stand in a supervisor program: it has a carriage return, a NUL or bytes that are not "
            "UTF-8. Rename the file."
        )
    text = word.replace("%", "%%")
    if SUPERVISOR_PLAIN.fullmatch(text):
        return text
    quoted = shlex.quote(text)
    # A quote before these letters keeps them from beginning a comment, or from being read as "%(here)s".
    quoted = re.sub(r"([;#(])", r"''\1", quoted)
    # A line that begins and ends with a quote keeps the white space around the line break; one blank folds it.
    return quoted.replace("\n", "''\n ''")


def _one_flag_a_line(words: Sequence[str], separator: str) -> str:
    text = words[0]
    for word in words[1:]:
        text += (separator if word.startswith("--") else " ") + word
    return text
