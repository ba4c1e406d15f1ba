# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the OpenAPI document describes errors: all of them are problem documents."""

from __future__ import annotations

from typing import Any

from .problems import MEDIA_TYPE

REFERENCE = "#/components/schemas/ProblemDocument"
MEANINGS = {
    400: "The request cannot be read.",
    401: "Without a valid token or session.",
    403: "The role does not allow it, or the request came from another origin.",
    404: "There is none of this name; nearest has those that resemble it.",
    409: "It does not fit the present state; fix says what to do.",
    413: "The request is too large.",
    422: "A value is not valid; detail names it.",
    429: "Too many tokens were refused; Retry-After has the seconds to wait.",
    500: "The console failed.",
    502: "The run failed; detail has its first error, instance its job.",
    503: "The inventory cannot be read, or the console's Redis does not answer; detail says which.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The value of an endpoint's `responses` for these errors."""
    return {
        status: {"description": MEANINGS[status], "content": {MEDIA_TYPE: {"schema": {"$ref": REFERENCE}}}}
        for status in statuses
    }
