# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The servers behind a gateway: backends of servers with one model, and the names that clients may ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.argv import flag_value
from .._core.documents import NAME, NULL, Document, Fields, Map
from .._core.errors import MagiError
from .._core.values import is_loopback
from .._models.names import QUANT_TOKEN
from .._models.quantization import TIERS
from .._plan.memory_flags import DEFAULT_PARALLEL

ANY_ADDRESS = ("0.0.0.0", "::", "")
# A name has this many backends at most: HAProxy looks at one after another.
MAX_CANDIDATES = 8

_SERVER = Fields(
    {"name": NAME, "model_id": NAME, "kind": str, "listens": str, "port": int, "slots": int},
    {"tier": (str, NULL), "display_name": (str, NULL)},
)
# A host as gateways reach it.
HOST = Fields({"address": str, "servers": [_SERVER]})
# What a gateway knows of every host's servers, so that a run over some hosts keeps the others.
FLEET = Document("fleet", 1, Fields({"hosts": Map(HOST)}))


class GatewayError(MagiError):
    """Raised for servers or settings that a gateway cannot be configured with."""


@dataclass(frozen=True)
class Server:
    """A server as a gateway reaches it; slots is the number of requests that it processes at once."""

    name: str
    address: str
    port: int
    slots: int


@dataclass(frozen=True)
class Backend:
    """The servers of one model. The key is that of the servers themselves, empty without one."""

    model_id: str
    display_name: str
    tier: str | None
    kind: str
    servers: tuple[Server, ...]
    key: str = ""


def model_hosts(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the hosts of an inventory that run servers: all but those that are in the group gateways and in no other.

    groups are Ansible's. An empty inventory is this machine.
    """
    others = {host for name, hosts in groups.items() if name not in ("all", "ungrouped", "gateways") for host in hosts}
    only_gateways = set(groups.get("gateways", ())) - others
    return [host for host in groups["all"] if host not in only_gateways] or ["localhost"]


def host_entry(record: Mapping[str, Any], address: str) -> dict[str, Any]:
    """What a gateway needs to know of a host: {"address", "servers"}, from the host's record of what is deployed."""
    servers = [
        {
            "name": server["name"],
            "model_id": server["model_id"],
            "display_name": server.get("display_name"),
            "tier": server.get("tier"),
            "kind": server.get("kind") or "model",
            "listens": server.get("host") or "",
            "port": server["port"],
            "slots": slots_of(server["argv"]),
        }
        for server in record["servers"]
    ]
    return {"address": address, "servers": servers}


def slots_of(argv: Sequence[str]) -> int:
    """The number of requests that a server with this command line processes at once."""
    given = flag_value(argv, "--parallel")
    try:
        slots = int(given) if given is not None else -1
    except ValueError:
        slots = -1
    return slots if slots > 0 else DEFAULT_PARALLEL


def reached_at(entry: Mapping[str, Any], server: Mapping[str, Any], is_here: bool) -> str | None:
    """The address at which a gateway reaches a server; None if the server listens on another host's loopback only."""
    listens = server["listens"]
    if is_loopback(listens):
        return listens if is_here else None
    if listens in ANY_ADDRESS:
        return "127.0.0.1" if is_here else entry["address"]
    return str(listens)


def backends_of(
    hosts: Mapping[str, Mapping[str, Any]], keys: Mapping[str, str], here: Iterable[str]
) -> tuple[list[Backend], list[str]]:
    """Return the backends, and a warning for each host whose servers a gateway cannot reach.

    hosts has an entry for each host, keys the API key of the servers of those that have one; here are the hosts that
    are the gateway's own machine. Raises GatewayError if servers of one model have different keys.
    """
    servers: dict[str, list[Server]] = {}
    about: dict[str, Mapping[str, Any]] = {}
    holders: dict[str, dict[str, str]] = {}
    hidden: dict[str, list[str]] = {}
    local = set(here)
    for host, entry in sorted(hosts.items()):
        for server in entry["servers"]:
            address = reached_at(entry, server, host in local)
            if address is None:
                hidden.setdefault(host, []).append(server["name"])
                continue
            model = server["model_id"]
            about.setdefault(model, server)
            holders.setdefault(model, {}).setdefault(keys.get(host, ""), host)
            name = f"{proxy_name(host)}_{server['port']}"
            servers.setdefault(model, []).append(Server(name, address, server["port"], server["slots"]))
    for model, found in holders.items():
        if len(found) > 1:
            raise GatewayError(
                f"The servers of {model} on {' and '.join(sorted(found.values()))} have different API keys, and a "
                "gateway sends one to all servers of a model: give these hosts the same first key in "
                "servers_api_key_file."
            )
    backends = [
        Backend(
            model,
            str(about[model].get("display_name") or model),
            about[model].get("tier"),
            about[model]["kind"],
            tuple(sorted(members, key=lambda server: server.name)),
            next(iter(holders[model])),
        )
        for model, members in sorted(servers.items())
    ]
    warnings = [
        f"{host}: {', '.join(names)} cannot be reached from here, as servers_host there is a loopback address: set "
        "it to the host's own address, and servers_api_key_file with it."
        for host, names in sorted(hidden.items())
    ]
    return backends, warnings


def proxy_name(host: str) -> str:
    """A host's name as part of the name of a server in HAProxy's configuration."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", host)


def family_of(model_id: str) -> str:
    """A model's id without its quantization: the same for all quantizations of a model. The id itself without one."""
    family = QUANT_TOKEN.sub("", model_id).strip("-._ ")
    return re.sub(r"[-._]{2,}", "-", family) or model_id


def names_of(backends: Sequence[Backend], aliases: Mapping[str, Any], families: bool) -> dict[str, list[str]]:
    """Return the models behind each name that clients may ask for, best first: ids, aliases, tiers and families.

    An alias has one model or a list of them, best first; those with weights are split_names(). Each may be any other
    name. Raises GatewayError for an alias that is the id of a model, or whose models no server has.
    """
    ids = [backend.model_id for backend in backends]
    names: dict[str, list[str]] = {}
    generated = [backend for backend in backends if backend.kind == "model"]
    for backend in sorted(generated, key=_rank):
        if families:
            names.setdefault(family_of(backend.model_id), []).append(backend.model_id)
        if backend.tier:
            names.setdefault(backend.tier, []).append(backend.model_id)
    names.update({model: [model] for model in ids})
    for alias, targets in sorted(aliases.items()):
        if alias in ids:
            raise GatewayError(f"gateway_aliases.{alias} is the id of a model: choose another name.")
        wanted = list(targets) if isinstance(targets, (list, tuple, dict)) else [targets]
        found = [model for target in wanted for model in names.get(str(target), [])]
        if found:
            names[alias] = list(dict.fromkeys(found))
    return {name: models[:MAX_CANDIDATES] for name, models in sorted(names.items())}


def split_names(backends: Sequence[Backend], aliases: Mapping[str, Any]) -> dict[str, list[tuple[str, int]]]:
    """Return the models of each alias that is split by weight, each with its share in percent; they sum up to 100."""
    ids = {backend.model_id for backend in backends}
    found = {}
    for alias, targets in sorted(aliases.items()):
        if isinstance(targets, Mapping):
            weights = {str(model): float(weight) for model, weight in targets.items() if str(model) in ids}
            if weights and sum(weights.values()) > 0:
                found[alias] = _percent(weights)
    return found


def _percent(weights: Mapping[str, float]) -> list[tuple[str, int]]:
    """Whole percent of each, by the largest remainder."""
    total = sum(weights.values())
    exact = {model: 100 * weight / total for model, weight in weights.items()}
    shares = {model: int(value) for model, value in exact.items()}
    for model in sorted(exact, key=lambda model: shares[model] - exact[model])[: 100 - sum(shares.values())]:
        shares[model] += 1
    return list(shares.items())


def _rank(backend: Backend) -> tuple[int, str]:
    """Highest quality first."""
    return (-TIERS.index(backend.tier) if backend.tier in TIERS else 1, backend.model_id)
