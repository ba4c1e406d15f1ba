# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Parts of HAProxy's configuration: literal texts, answers, maps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# The configuration names its own folder by this variable.
FOLDER = "MAGI_GATEWAY"
# How a text of a client is put into JSON: its beginning, as its length has no bound.
SHOWN = "bytes(0,200),json(utf8s)"


def map_text(content: Mapping[str, Any]) -> str:
    return "".join(f"{key} {value}\n" for key, value in sorted(content.items()))


def error_json(message: str, kind: str, code: str, param: str | None = None) -> str:
    """An error as OpenAI's clients expect it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def literal(text: str) -> str:
    """A text as one word of the configuration, without any expansion."""
    if any(ord(character) < 0x20 for character in text):
        raise ValueError(f"a text of the configuration has a control character: {text!r:.60}")
    return "'" + text.replace("'", "'\\''") + "'"


def http_error(status: int, message: str, kind: str, code: str, retry: str = "") -> str:
    after = f" hdr Retry-After {retry}" if retry else ""
    body = literal(error_json(message, kind, code))
    return f"  http-error status {status} content-type application/json string {body}{after}"


def refuse(status: int, body: str, condition: str, headers: str = "") -> str:
    text = literal(body)
    return f"  http-request return status {status} content-type application/json string {text}{headers} if {condition}"
