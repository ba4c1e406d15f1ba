# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Who reaches the exporters: their targets for Prometheus, and the addresses that their units let in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.errors import MagiError
from .._core.exchange import authority
from .._core.values import ANY_ADDRESS, is_loopback
from .._gateway.fleet import model_hosts

# Defaults of the role, for hosts whose inventory has no other.
EXPORTER_HOST = "127.0.0.1"
EXPORTER_PORT = 9105


class MonitoringError(MagiError):
    """An exporter that Prometheus cannot reach, or that anyone could."""


def exporter_access(host: str, allow: Sequence[str] = (), servers_host: str = EXPORTER_HOST) -> dict[str, str]:
    """The settings of an exporter's unit for the addresses that it may talk to; servers_host is where servers listen.

    Raises MonitoringError where it would be open to everyone.
    """
    if not is_loopback(host) and not allow:
        raise MonitoringError(
            f"monitoring_exporter_host is {host}, and monitoring_exporter_allow_addresses is empty: set it to the "
            "addresses of the hosts of the group monitoring, since the exporter has no password. Nothing was changed."
        )
    # A request from the host itself to such an address comes from it.
    own = [one for one in dict.fromkeys((host, servers_host)) if not is_loopback(one) and one not in ANY_ADDRESS]
    return {
        "IPAddressDeny": "any",
        "IPAddressAllow": " ".join(["localhost", *own, *([] if is_loopback(host) else allow)]),
    }


def exporter_targets(
    groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any], monitor: str
) -> list[dict[str, Any]]:
    """The exporters of all hosts with servers, as Prometheus reads them from a file. It runs on the host monitor.

    Raises MonitoringError where an exporter listens on the loopback address of another host.
    """
    targets = []
    for host in model_hosts(groups):
        known = hostvars[host]
        listens = str(known.get("monitoring_exporter_host") or EXPORTER_HOST)
        if is_loopback(listens) and host != monitor:
            raise MonitoringError(
                f"{host}: monitoring_exporter_host is {listens}, where {monitor} does not reach it: "
                f"set it to the address of {host}, and monitoring_exporter_allow_addresses to that of {monitor}. "
                "Nothing was changed."
            )
        address = str(known.get("servers_address") or known.get("ansible_host") or host)
        if is_loopback(listens) or listens not in ANY_ADDRESS:
            address = listens
        port = int(known.get("monitoring_exporter_port") or EXPORTER_PORT)
        targets.append({"targets": [authority(address, port)], "labels": {"host": host}})
    return targets
