# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Values of variables and parameters, read the same way everywhere."""

from __future__ import annotations

import ipaddress
from typing import Any

from .errors import MagiError

# A server that listens on one of these is reached at every address of its host.
ANY_ADDRESS = ("0.0.0.0", "::", "")
MAX_PORT = 65535


class ValueTypeError(MagiError):
    """Raised for a value that its variable does not accept."""


def parse_bool(name: str, value: Any) -> bool:
    """Return the boolean of a variable that also accepts auto. Raises ValueTypeError, which names the variable."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise ValueTypeError(f"{name} is {value}: set it to auto, true or false.") from None


def is_loopback(host: str) -> bool:
    """Return whether only the host itself can reach a server that listens on this address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def address_error(name: str, host: str) -> str | None:
    """Return what is wrong with the address in a variable; None if a server can listen on it."""
    if host == "localhost":
        return None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return (
            f"{name} is {host}: set it to one IP address, such as 127.0.0.1, ::1 or 0.0.0.0, or to localhost. Names, "
            "lists and brackets are not accepted, as they can open more than they seem to."
        )
    return None
