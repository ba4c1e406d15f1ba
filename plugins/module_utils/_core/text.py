# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Text that people see: sizes, and text from outside, made fit for one line of a terminal, a log or a page."""

from __future__ import annotations

import re
import unicodedata

# Maximum length of untrusted text; the rest is cut off.
MAX_TEXT = 256


def format_bytes(size: float) -> str:
    """Return a human-readable size: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def redact(url: str) -> str:
    """Return a URL without user and password."""
    return re.sub(r"//[^/@\s]*@", "//", url)


def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """Return one line: no control, formatting (bidirectional overrides too), private or unassigned characters."""
    kept = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text[: 4 * limit])
    return " ".join(kept.split())[:limit].rstrip()


def printable(text: str) -> str:
    """Return a path or other text with escapes for characters that are not printable or not UTF-8."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def quoted(name: str) -> str:
    """Return an untrusted name in quotes, with escapes, on one line."""
    return repr(name if len(name) <= 80 else name[:77] + "...")
