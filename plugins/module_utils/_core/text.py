# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Text that people see: sizes, and text from outside, made fit for one line of a terminal, a log or a page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Maximum length of untrusted text; the rest is cut off.
MAX_TEXT = 256
# Untrusted text in messages: characters of a line, and lines of a text.
MAX_LINE = 500
MAX_LINES = 1000
# Letters and marks that have no width, which Python counts as printable.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")

# How an error begins that does not begin with a key.
_PLAIN = re.compile("(this|unknown) ")


def format_bytes(size: float) -> str:
    """Return a human-readable size: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def redact(url: str) -> str:
    """Return a text without the user, the password and the query of each URL in it; a query may hold a token."""
    without_user = re.sub(r"//[^/\s]*@", "//", url)
    return re.sub(r"(\w://[^\s?#]*)\?[^\s#]*", r"\1?…", without_user)


def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """Return one line: no control, formatting (bidirectional overrides too), private or unassigned characters."""
    kept = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text[: 4 * limit])
    return " ".join(kept.split())[:limit].rstrip()


def printable(text: str) -> str:
    """Return a path or other text with escapes for characters that are invisible, not printable or not UTF-8."""
    if text.isascii() and text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character
        if character.isprintable() and not _INVISIBLE.match(character)
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def visible_line(text: str, limit: int = MAX_LINE) -> str:
    """Return untrusted text as one line that changes nothing on a terminal: cut, then with escapes."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return printable(cut.replace("\t", "    "))[: 4 * limit]


def visible_lines(text: str, most: int = MAX_LINES) -> list[str]:
    """Return the lines of an untrusted text, each as visible_line; the last says how many were left out."""
    lines = text.split("\n")
    kept = [visible_line(line.rstrip("\r")) for line in lines[:most]]
    return [*kept, f"… and {len(lines) - most} more lines"] if len(lines) > most else kept


def visible_text(text: str) -> str:
    """Return an untrusted text of several lines in a form that changes nothing on a terminal."""
    return "\n".join(visible_lines(text))


def visible_value(value: Any) -> Any:
    """Return a JSON value with escapes for what is not printable in its keys and texts. Line ends are kept."""
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else "\n".join(map(printable, value.split("\n")))
    if isinstance(value, Mapping):
        return {visible_value(key): visible_value(item) for key, item in value.items()}
    return [visible_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def bounded(items: Sequence[str], most: int, total: int | None = None) -> list[str]:
    """Return the first items, and how many there are besides; total is their number where items is already cut."""
    count = len(items) if total is None else total
    return [*items[:most], f"      … and {count - most} more"] if count > most else list(items)


def sentences(texts: Sequence[str]) -> str:
    """Return errors as one text: with a mark at each end, and a capital where the next begins without a key."""
    ended = [text if text.endswith((".", "?", "!")) else f"{text}." for text in texts]
    return " ".join(
        [*ended[:1], *(f"{text[0].upper()}{text[1:]}" if _PLAIN.match(text) else text for text in ended[1:])]
    )


def quoted(name: str) -> str:
    """Return an untrusted name in quotes, with escapes, on one line."""
    return repr(name if len(name) <= 80 else name[:77] + "...")
