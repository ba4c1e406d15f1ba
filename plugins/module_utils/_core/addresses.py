# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Who reaches servers that listen on other than a loopback address: by default the gateways of the inventory."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .values import ANY_ADDRESS, is_loopback

# In servers_allow_addresses: the hosts of the group gateways.
GATEWAYS = "gateways"
# A gateway that is the servers' own host.
LOCAL = "127.0.0.0/8"


def allowed_addresses(
    wanted: Sequence[str], gateways: Mapping[str, str | None], resolve: Callable[[str], list[str]] | None = None
) -> tuple[list[str], list[str]]:
    """Return the addresses and networks that may reach the servers, and the gateways whose address is not known.

    gateways has each gateway's address in the inventory, None where it has none that other hosts could see, and LOCAL.
    Nothing is returned as allowed, which means that everyone is, where wanted is empty, where it names gateways and the
    inventory has none, and where an address is not known: a gateway must not be shut out by a guess.
    """
    found = {address for address in wanted if address != GATEWAYS}
    unknown = []
    if GATEWAYS in wanted:
        for name, address in gateways.items():
            if address == LOCAL:
                found.add(LOCAL)
                continue
            addresses = (resolve or resolved)(address) if address else []
            if not addresses or any(is_loopback(one) for one in addresses):
                unknown.append(name)
            found.update(addresses)
        if unknown or not gateways:
            return [], sorted(unknown)
    return sorted(found), []


def resolved(address: str) -> list[str]:
    """The addresses of a name; an empty list if it cannot be resolved."""
    try:
        return [str(ipaddress.ip_address(address))]
    except ValueError:
        pass
    try:
        return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)})
    except OSError:
        return []


def address_errors(wanted: Any) -> list[str]:
    """What is wrong with servers_allow_addresses."""
    return [
        f"servers_allow_addresses has {entry}: set it to addresses, networks such as 192.0.2.0/24, or {GATEWAYS}."
        for entry in (wanted if isinstance(wanted, (list, tuple)) else [wanted])
        if entry != GATEWAYS and not _is_network(entry)
    ]


def _is_network(value: Any) -> bool:
    try:
        ipaddress.ip_network(str(value))
    except ValueError:
        return False
    return True


def unit_addresses(host: str, argv: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """The settings of a systemd unit for a server that listens on host: whom it may talk to.

    That is its own machine, and on other than a loopback address those allowed; all where there are none.
    """
    # RPC servers and clients on other machines need more.
    if "--rpc" in argv or not (is_loopback(host) or allowed):
        return {"IPAddressDeny": None, "IPAddressAllow": None}
    # The machine itself comes from the address that it asks.
    others = [] if is_loopback(host) else [*([] if host in ANY_ADDRESS else [host]), *allowed]
    return {"IPAddressDeny": "any", "IPAddressAllow": " ".join(["localhost", *others])}
