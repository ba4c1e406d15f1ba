# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Values of variables and parameters, read the same way everywhere."""

from __future__ import annotations

from typing import Any

from .errors import MagiError


class ValueTypeError(MagiError):
    """A value that is not of the kind that its variable takes."""


def parse_bool(name: str, value: Any) -> bool:
    """The boolean that a variable holds, which also takes auto. Raises ValueTypeError, which names the variable."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueTypeError(f"{name} is {value}: set it to auto, true or false.") from None


def is_loopback(host: str) -> bool:
    """Whether only the host itself can reach a server that listens there."""
    return host in ("localhost", "::1") or host.startswith("127.")
