# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Quoting for launch configs, so that a command line reaches the server exactly as planned.

A model's path is untrusted text: none of its characters may have a special meaning for systemd or supervisor.
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
    """Raised for text that the service manager's file format cannot represent."""


def systemd_argv(argv: Sequence[str], program: str | None = None) -> str:
    """Return a command line for ExecStart=, one flag per line.

    program is the file to start, by default the first word, which its process has as a name in any case.
    """
    if not argv:
        raise QuoteError("A server without a command line cannot be written as a systemd unit.")
    named, program = argv[0], program or argv[0]
    # systemd reads the program's path literally and rejects these characters in it.
    if not program.startswith("/") or re.search(r"[\x00-\x1f\x7f\"'\\$]", program):
        raise QuoteError(
            f"The path of llama-server, {program!r}, cannot be written to a systemd unit: it must be absolute and "
            "without quotes, backslashes, dollar signs and control characters. Link the program to a simpler path."
        )
    first = [program] if program == named else [f"@{program}", named.replace("$", "$$")]
    words = [*map(_systemd_word, first), *(_systemd_word(word.replace("$", "$$"), word) for word in argv[1:])]
    return _one_flag_a_line(words, " \\\n    ")


def systemd_arguments(words: Sequence[str]) -> str:
    """Return words for a setting that becomes part of a command line, one flag per line, as a quadlet's Exec=."""
    for before, word in zip(["", *words], words):
        # What follows it would be lost, such as the port.
        if not word:
            raise QuoteError(
                f"{before or 'The command line'} has an empty value, at which podman's generator ends the command "
                "line. Remove it from the profile's parameters."
            )
    return _one_flag_a_line([_systemd_word(word.replace("$", "$$"), word) for word in words], " \\\n    ")


def systemd_environment(env: Mapping[str, str]) -> str:
    """Return Environment= lines, sorted by name."""
    return "\n".join(f"Environment={_systemd_word(f'{name}={value}')}" for name, value in sorted(env.items()))


def systemd_paths(paths: Sequence[str]) -> str:
    """Return the value of a setting like ReadOnlyPaths=, which allows quotes but no escapes for control characters."""
    for path in paths:
        if re.search(r"[\x00-\x1f\x7f]", path):
            raise QuoteError(f"The path {path!r} cannot be written to a systemd unit: it contains a control character.")
    return " ".join(_systemd_word(path) for path in paths)


def systemd_binds(shows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the values of a setting like BindPaths=, for each "path" and its "source", if it exists."""
    return [
        systemd_paths(["-" + (show["path"] if show["path"] == show["source"] else f"{show['source']}:{show['path']}")])
        for show in shows
    ]


def systemd_settings(settings: Mapping[str, Any]) -> str:
    """Return Key=value lines; null or empty settings are omitted, a list gets one line per entry."""
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
    """Return one word of a unit file: in double quotes with C escapes if needed, % specifiers escaped."""
    text = text.replace("%", "%%")
    if SYSTEMD_PLAIN.fullmatch(text):
        return text
    if "\0" in text:
        raise QuoteError(f"The word {original or text!r} cannot be written to a systemd unit: it contains a NUL byte.")
    return '"' + "".join(_systemd_letter(letter) for letter in text) + '"'


def _systemd_letter(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if letter < " " or letter == "\x7f" or "\udc80" <= letter <= "\udcff":
        return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
    return letter


def supervisor_command(argv: Sequence[str]) -> str:
    """Return a command line for command=, one flag per line."""
    return _one_flag_a_line([_supervisor_word(word) for word in argv], "\n  ")


def supervisor_environment(env: Mapping[str, str]) -> str:
    """Return the value of environment=, sorted by name."""
    pairs = []
    for name, value in sorted(env.items()):
        quote = "'" if '"' in value else '"'
        if quote in value or value.strip("'\"") != value:
            raise QuoteError(f"{name}={value!r} cannot be written to a supervisor program: it contains quotes.")
        pairs.append(f"{name}={quote}{supervisor_value(value)}{quote}")
    return ",".join(pairs)


def supervisor_value(text: str) -> str:
    """Return a plain value, such as a path, with percent signs doubled."""
    # supervisor reads "#" and ";" after white space as a comment, and strips white space at both ends.
    if re.search(r"[\x00-\x1f\x7f\udc80-\udcff]|(^|\s)[;#]|%\(", text) or text != text.strip():
        raise QuoteError(
            f"{text!r} cannot be written to a supervisor program: it has control characters, bytes that are not UTF-8, "
            'white space at its ends, "%(", or a word that begins with ";" or "#". Choose a simpler path.'
        )
    return text.replace("%", "%%")


def _supervisor_word(word: str) -> str:
    """Return one word for shlex, in a configuration file with comments, line folding and % expansion."""
    if re.search(r"[\0\r\udc80-\udcff]", word):
        raise QuoteError(
            f"{word!r} cannot be written to a supervisor program: it has a carriage return, a NUL or bytes that are "
            "not UTF-8. Rename the file."
        )
    text = word.replace("%", "%%")
    if SUPERVISOR_PLAIN.fullmatch(text):
        return text
    quoted = shlex.quote(text)
    # Empty quotes before these characters keep them from starting a comment or a "%(here)s" expansion.
    quoted = re.sub(r"([;#(])", r"''\1", quoted)
    # Quotes around a line break preserve the white space next to it; the leading space makes a continuation line.
    return quoted.replace("\n", "''\n ''")


def _one_flag_a_line(words: Sequence[str], separator: str) -> str:
    text = words[0]
    for word in words[1:]:
        text += (separator if word.startswith("--") else " ") + word
    return text
