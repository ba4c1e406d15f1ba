# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The servers behind a gateway: backends of servers with one model, and the names that clients may ask for."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.argv import flag_value
from .._core.documents import NAME, Document, DocumentError, Fields, Map, Maybe, check
from .._core.errors import MagiError
from .._core.processes import Process
from .._core.text import clean_text
from .._core.values import ANY_ADDRESS, MAX_PORT, is_loopback
from .._models.names import QUANT_TOKEN
from .._models.quantization import TIERS
from .._plan.memory_flags import slots_for
from .watch import MAX_PATIENCE, PATIENCE, patience_of

MAX_SLOTS = 4096
# API keys of a host that gateways know of, for rotating them.
MAX_KEYS = 16
MAX_TITLE = 200
MAX_AWAY_SECONDS = 86400
MAX_IDLE_SECONDS = 1_000_000_000

# What may become a part of HAProxy's configuration: nothing of a host is more than a name, a number or an address.
_ADDRESS = re.compile(r"(?:[0-9A-Za-z][0-9A-Za-z.-]{0,252}|[0-9A-Fa-f:.]{2,45})?")
_TIER = re.compile("|".join(TIERS))
_KIND = re.compile(r"[a-z]{1,20}")
_TITLE = re.compile(r"[^\x00-\x1f\x7f]{0,200}")
KEY = re.compile(r"(?:[!-~](?:[ -~]{0,4094}[!-~])?)?")
_SERVER = Fields(
    {"name": NAME, "model_id": NAME, "kind": _KIND, "listens": _ADDRESS, "port": int, "slots": int},
    {
        "tier": Maybe(_TIER),
        "display_name": Maybe(_TITLE),
        # It gets no new requests, and may be back after so many seconds.
        "draining": bool,
        "away_seconds": int,
        "patience": int,
        # Its first request starts it: nothing else may ask it.
        "on_demand": bool,
        # It is stopped after so many seconds without a request; 0 for never.
        "idle_seconds": int,
        # It was started before its API key file changed.
        "old_keys": bool,
    },
)
# A host as gateways reach it.
HOST = Fields({"address": _ADDRESS, "servers": [_SERVER]})
# What a gateway knows of every host's servers, so that a run over some hosts keeps the others; and when a run that had
# locked the host changed that, in seconds since the epoch.
FLEET = Document("fleet", 1, Fields({"hosts": Map(HOST)}, {"changed": Map((int, float))}))


class GatewayError(MagiError):
    """Raised for servers or settings that a gateway cannot be configured with."""


@dataclass(frozen=True)
class Server:
    """A server as a gateway reaches it; slots is the number of requests that it processes at once.

    One that is draining gets no new requests; away_seconds is how long it will probably be away, 0 where unknown.
    patience is for how many seconds it may be busy with one batch: longer is a hang. One on demand is started by its
    first request, so that no check may ask it, and stopped after idle_seconds without one, 0 for never.
    """

    name: str
    address: str
    port: int
    slots: int
    is_draining: bool = False
    away_seconds: int = 0
    patience: int = PATIENCE
    is_on_demand: bool = False
    idle_seconds: int = 0


@dataclass(frozen=True)
class Backend:
    """The servers of one model. The key is that of the servers themselves, empty without one."""

    model_id: str
    display_name: str
    tier: str | None
    kind: str
    servers: tuple[Server, ...]
    key: str = ""

    @property
    def away_seconds(self) -> int:
        """Seconds until the first of its servers is back, where all of them are draining; 0 where unknown."""
        if not all(server.is_draining for server in self.servers):
            return 0
        return min((server.away_seconds for server in self.servers if server.away_seconds), default=0)


# Groups of hosts that run something else than servers.
OTHER_GROUPS = ("gateways", "console", "redis", "monitoring")


def model_hosts(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the hosts of an inventory that run servers: those of the group models; without it, all but
    those of OTHER_GROUPS.

    groups are Ansible's. An empty inventory is this machine, and a fleet of such hosts alone has the servers on them.
    """
    if "models" in groups:
        return list(groups["models"])
    others = {host for group in OTHER_GROUPS for host in groups.get(group, ())}
    return [host for host in groups["all"] if host not in others] or list(groups["all"]) or ["localhost"]


def check_host(entry: Any, keys: Sequence[str]) -> None:
    """Raise DocumentError unless a host's entry and the keys of its servers can be in a configuration."""
    check(entry, HOST, "the host")
    check(keys, [KEY], "the keys of its servers")
    ports = [server["port"] for server in entry["servers"]]
    if len(ports) != len(set(ports)) or not all(1 <= port <= MAX_PORT for port in ports):
        raise DocumentError("two servers of the host have one port, or a port is out of range")
    if not all(1 <= server["slots"] <= MAX_SLOTS for server in entry["servers"]):
        raise DocumentError(f"the slots of a server are not 1 to {MAX_SLOTS}")
    if not all(1 <= server.get("away_seconds", 1) <= MAX_AWAY_SECONDS for server in entry["servers"]):
        raise DocumentError(f"the away_seconds of a server are not 1 to {MAX_AWAY_SECONDS}")
    if not all(1 <= server.get("patience", 1) <= MAX_PATIENCE for server in entry["servers"]):
        raise DocumentError(f"the patience of a server is not 1 to {MAX_PATIENCE}")
    if not all(0 <= server.get("idle_seconds", 0) <= MAX_IDLE_SECONDS for server in entry["servers"]):
        raise DocumentError(f"the idle_seconds of a server are not 0 to {MAX_IDLE_SECONDS}")


def one_per_port(
    servers: Sequence[Mapping[str, Any]], running: Container[str], draining: Container[str]
) -> list[Mapping[str, Any]]:
    """The servers, of several with one port only the one that listens there.

    A stand-in of a later step has the port of one that is stopped before it starts; both are in the record.
    """

    def rank(server: Mapping[str, Any]) -> tuple[bool, bool]:
        return server["name"] in running, server["name"] not in draining

    best: dict[int, Mapping[str, Any]] = {}
    for server in servers:
        port = int(server["port"])
        if port not in best or rank(server) > rank(best[port]):
            best[port] = server
    return [server for server in servers if best[int(server["port"])] is server]


def host_entry(
    record: Mapping[str, Any],
    address: str,
    draining: Mapping[str, int | None] | None = None,
    old_keys: Container[str] = (),
) -> dict[str, Any]:
    """What a gateway needs to know of a host: {"address", "servers"}, from the host's record of what is deployed.

    draining has the servers that are to get no new requests, as away_times returns them, old_keys those that were
    started before their API key file changed.
    """
    servers = [
        {
            "name": server["name"],
            "model_id": server["model_id"],
            "display_name": clean_text(str(server.get("display_name") or ""), MAX_TITLE),
            "tier": server.get("tier"),
            "kind": server.get("kind") or "model",
            "listens": server.get("host") or "",
            "port": server["port"],
            "slots": slots_of(server["argv"]),
            "patience": patience_of(server),
            **_on_demand(server),
            **({"old_keys": True} if server["name"] in old_keys else {}),
            **(_draining(draining[server["name"]]) if draining and server["name"] in draining else {}),
        }
        for server in record["servers"]
    ]
    return {"address": address, "servers": servers}


def as_running(server: Mapping[str, Any], process: Process | None) -> Mapping[str, Any]:
    """A server of the record as it is while its process is still that of an earlier launch config."""
    if process is None or server.get("on_demand") or process.env.get("MAGI_LLAMA_REVISION") == server.get("revision"):
        return server
    argv = list(process.argv)
    port = flag_value(argv, "--port") or ""
    if not port.isdecimal():
        return server
    return {**server, "port": int(port), "host": flag_value(argv, "--host") or server.get("host"), "argv": argv}


def gateway_servers(members: Mapping[str, Any], host: str, names: Sequence[str]) -> list[str]:
    """The names in HAProxy's configuration of a host's servers; members is what gateway_members found there.

    Raises GatewayError for a server that is not in members.
    """
    return [server_key(host, server)[1] for server in _named(members, host, names)]


def unserved_servers(
    answers: Sequence[Any], members: Mapping[str, Any], host: str, names: Sequence[str]
) -> list[dict[str, str]]:
    """Return which of a host's servers get no requests from which gateway: [{"gateway", "server"}].

    answers are the results of a loop of gateway_state over gateways, members is what gateway_members found on the host.
    A gateway that is not set up has none, and one on another host has none that listen on a loopback only. Raises
    GatewayError for a server that is not in members.
    """
    servers = _named(members, host, names)
    return [
        {"gateway": gateway, "server": str(server["name"])}
        for gateway, serving in _serving(answers)
        for server in servers
        if reached_at(members, server, gateway == host) is not None and server_key(host, server)[1] not in serving
    ]


def serving_gateways(
    answers: Sequence[Any], members: Mapping[str, Any], host: str, names: Sequence[str]
) -> list[dict[str, str]]:
    """Return which of a host's servers get requests from which gateway: [{"gateway", "server"}].

    The arguments are those of unserved_servers. One that is not in members gets none.
    """
    return [
        {"gateway": gateway, "server": str(server["name"])}
        for gateway, serving in _serving(answers)
        for server in members["servers"]
        if server["name"] in names and server_key(host, server)[1] in serving
    ]


def _serving(answers: Sequence[Any]) -> Iterator[tuple[str, Collection[str]]]:
    for answer in answers:
        if isinstance(answer, Mapping) and isinstance(answer.get("serving"), list):
            # The loop's items have the part and the gateway.
            yield str(answer["item"][1]), answer["serving"]


def _named(members: Mapping[str, Any], host: str, names: Sequence[str]) -> list[Mapping[str, Any]]:
    found = {server["name"]: server for server in members["servers"]}
    if missing := [name for name in names if name not in found]:
        raise GatewayError(f"{host}: {', '.join(missing)} are not among the servers that gateways can use.")
    return [found[name] for name in names]


def _on_demand(server: Mapping[str, Any]) -> dict[str, Any]:
    if "on_demand" not in server:
        return {}
    return {"on_demand": True, "idle_seconds": server["on_demand"].get("idle_stop") or 0}


def _draining(away: int | None) -> dict[str, Any]:
    return {"draining": True, **({} if away is None else {"away_seconds": away})}


def away_times(draining: Iterable[str], seconds: Mapping[str, Any]) -> dict[str, int | None]:
    """For how long each draining server will be away, in seconds within limits; None where it is not said.

    Raises GatewayError for a value that is not a number.
    """
    try:
        limited = {name: max(1, min(math.ceil(float(value)), MAX_AWAY_SECONDS)) for name, value in seconds.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise GatewayError(f"away_seconds must have a number of seconds for each server: {error}.") from error
    return {name: limited.get(name) for name in draining}


def slots_of(argv: Sequence[str]) -> int:
    """The number of requests that a server with this command line processes at once."""
    try:
        return slots_for(int(flag_value(argv, "--parallel") or -1))
    except ValueError:
        return slots_for(-1)


def reached_at(entry: Mapping[str, Any], server: Mapping[str, Any], is_here: bool) -> str | None:
    """The address at which a gateway reaches a server; None if the server listens on another host's loopback only."""
    listens = server["listens"]
    if is_loopback(listens):
        return listens if is_here else None
    if listens in ANY_ADDRESS:
        return "127.0.0.1" if is_here else entry["address"]
    return str(listens)


def backends_of(
    hosts: Mapping[str, Mapping[str, Any]],
    keys_of: Callable[[str, Mapping[str, Any]], Sequence[str]],
    here: Iterable[str],
) -> tuple[list[Backend], list[str]]:
    """Return the backends, and a warning for each host with servers that are left out.

    hosts has an entry for each host, keys_of returns the API keys that a host's server takes; here are the hosts that
    are the gateway's own machine. Left out is what a gateway cannot reach, and of a model's servers those that do not
    take the key that most take, as a gateway sends one to all servers of a model.
    """
    # By model and key; a server is with each key that it takes.
    members: dict[str, dict[str, list[Server]]] = {}
    about: dict[tuple[str, str], Mapping[str, Any]] = {}
    hidden: dict[str, list[str]] = {}
    local = set(here)
    for host, entry in sorted(hosts.items()):
        for server in entry["servers"]:
            address = reached_at(entry, server, host in local)
            if address is None:
                hidden.setdefault(host, []).append(server["name"])
                continue
            member = Server(
                server_key(host, server)[1],
                address,
                server["port"],
                server["slots"],
                server.get("draining", False),
                server.get("away_seconds", 0),
                server.get("patience", PATIENCE),
                server.get("on_demand", False),
                server.get("idle_seconds", 0),
            )
            for key in keys_of(host, server) or [""]:
                members.setdefault(server["model_id"], {}).setdefault(key, []).append(member)
                about.setdefault((server["model_id"], key), server)
    warnings = [
        f"{host}: {', '.join(names)} cannot be reached from here, as servers_host there is a loopback address: set "
        "it to the host's own address, and servers_api_key_file with it."
        for host, names in sorted(hidden.items())
    ]
    backends = []
    for model, by_key in sorted(members.items()):
        key = max(by_key, key=lambda one: len(by_key[one]))
        found = about[model, key]
        title = found.get("display_name") or model
        servers = tuple(sorted(by_key[key], key=lambda server: server.name))
        backends.append(Backend(model, title, found.get("tier"), found["kind"], servers, key))
        others = sorted({server.name for group in by_key.values() for server in group} - {one.name for one in servers})
        if others:
            warnings.append(
                f"{model}: {', '.join(others)} do not take the API key that most of its servers take, and are left "
                "out: give all hosts a key in common in servers_api_key_file."
            )
    return backends, warnings


def server_key(host: str, server: Mapping[str, Any]) -> tuple[str, str]:
    """The names of a server's backend and of the server itself in HAProxy's configuration."""
    return server["model_id"], f"{proxy_name(host)}_{server['port']}"


def ready_servers(hosts: Mapping[str, Mapping[str, Any]], up: Collection[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """By model and host, the number of servers that a gateway uses: up has their names in HAProxy's configuration.

    Those on demand do not count: the gateway's own check finds them up while they sleep, and a request would wait for
    a start that may fail.
    """
    found: dict[str, dict[str, int]] = {}
    for host, entry in sorted(hosts.items()):
        for server in entry["servers"]:
            if server_key(host, server) in up and not server.get("on_demand"):
                counts = found.setdefault(server["model_id"], {})
                counts[host] = counts.get(host, 0) + 1
    return found


def proxy_name(host: str) -> str:
    """A host's name as part of the name of a server in HAProxy's configuration, as unique as the host's."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", host)
    return plain if plain == host else f"{plain}-{hashlib.sha256(host.encode()).hexdigest()[:8]}"


def family_of(model_id: str) -> str:
    """A model's id without its quantization: the same for all quantizations of a model. The id itself without one."""
    family = QUANT_TOKEN.sub("", model_id).strip("-._ ")
    return re.sub(r"[-._]{2,}", "-", family) or model_id
