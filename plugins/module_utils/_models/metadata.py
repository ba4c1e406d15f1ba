# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read values of a GGUF file's metadata, which is untrusted: a key may be missing or of any type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core.text import clean_text


def text_value(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def short_text(metadata: Mapping[str, Any], *keys: str) -> str | None:
    """Return the first of these keys with a text value, as one printable line."""
    for key in keys:
        text = clean_text(text_value(metadata, key) or "")
        if text:
            return text
    return None


def _counts(metadata: Mapping[str, Any], key: str) -> list[int]:
    """Return a count, or one per layer, as a list; empty if the key is missing or not an integer."""
    value = metadata.get(key)
    values = value if isinstance(value, tuple) else (value,)
    sound = [item for item in values if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 63]
    return sound if len(sound) == len(values) else []


def whole_number(metadata: Mapping[str, Any], key: str) -> int | None:
    """Return a count; the largest if there is one per layer."""
    return max(_counts(metadata, key), default=None)


def per_layer(metadata: Mapping[str, Any], key: str) -> int | list[int] | None:
    """Return a count, or a list with one per layer if the layers differ."""
    counts = _counts(metadata, key)
    return counts if len(set(counts)) > 1 else (counts[0] if counts else None)
