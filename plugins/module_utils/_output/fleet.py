# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The hosts of a run together: where their servers are reached, and a line for each host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.exchange import authority
from .._core.stand_ins import without_stand_ins
from .._core.values import ANY_ADDRESS
from .._health.endpoint import endpoint
from .report import table
from .rollout_summary import DONE

MAX_REASON = 100
_STATES = ("ok", "failed", "unreachable", "not begun")

Host = Mapping[str, Any]


def located(found: Host, name: str, address: str) -> dict[str, Any]:
    """A host's result with its name and address, and those of each server with its URL."""
    more = {"host": name, "address": address}
    servers = [{**server, **more, "url": url_of(server, address)} for server in found.get("servers", ())]
    return {**found, **more, **({"servers": servers} if "servers" in found else {})}


def url_of(server: Mapping[str, Any], address: str) -> str | None:
    """Where clients reach a server; one on a loopback address is reached on its host only. None if it is unknown."""
    bind = server.get("bind_address")
    if bind is None:
        return None
    # Ansible reaches a local host without an address of its own.
    host = address if bind in ANY_ADDRESS else bind
    return f"http{'s' if server.get('has_tls') else ''}://{authority(host, server['port'])}"


def planned_servers(plan: Mapping[str, Any], health: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The servers that a run of site leaves on a host; is_ready and state are None where they were not probed."""
    probed = {server["name"]: server for server in health.get("servers", ())}
    return [
        {
            **{key: server.get(key) for key in ("name", "model_id", "display_name", "tier", "port")},
            **endpoint(server, plan["profile"]),
            "is_ready": probed.get(server["name"], {}).get("is_ready"),
            "state": probed.get(server["name"], {}).get("state"),
            "planned_vram_bytes": int((server.get("memory") or {}).get("vram_bytes", 0)),
        }
        for server in without_stand_ins(plan["servers"])
        if server["action"] != "stop"
    ]


def fleet_lines(hosts: Mapping[str, Host], states: Mapping[str, str]) -> list[str]:
    """A line for each host with its ready servers; states say by host how the run ended there."""
    counts = Counter(states.values())
    listing = ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])
    rows = [[name, _ready(host), states[name], _changes(host), _reason(host)] for name, host in hosts.items()]
    return [
        f"fleet  {len(hosts)} hosts: {listing}",
        *table(("HOST", "READY", "STATE", "CHANGES", ""), rows),
    ]


def _ready(host: Host) -> str:
    total = host.get("total_servers")
    return "-" if total is None else f"{host['ready_servers']} of {total}"


def _changes(host: Host) -> str:
    return ", ".join(f"{count} {DONE[action]}" for action, count in (host.get("actions") or {}).items()) or "-"


def _reason(host: Host) -> str:
    first: Sequence[str] = str(host.get("error") or "").splitlines() or [""]
    return first[0] if len(first[0]) <= MAX_REASON else f"{first[0][:MAX_REASON]}…"
