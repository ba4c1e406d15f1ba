# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks from outside whether servers answer: their /health where the console reaches it, else the gateway's metrics."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from . import received
from .facts import Server

# A sweep of 200 servers ends within half a second. Those that are late by then are asked once more, with more patience:
# the machine may be busy, and a server that is said to be down is looked into by someone.
DEADLINE_SECONDS = 0.45
PATIENT_SECONDS = 5.0
CONNECTIONS = 128
# What is read of an answer at most: anything may answer at a server's port.
MAX_BYTES = 1 << 20
MAX_METRICS_BYTES = 8 << 20
MAX_SLOTS = 1024
# Compressed bodies could be of any size, so none is asked for, and none unpacked.
HEADERS = {"Accept-Encoding": "identity"}
Key = tuple[str, str]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """A server of a host and the URL of its /health."""

    host: str
    server: str
    url: str

    @property
    def key(self) -> Key:
        return self.host, self.server


def target(server: Server, address: str, is_local: bool) -> Target | None:
    """Where the console asks a server, None where only the host itself reaches it.

    address is the host's in the inventory; is_local says that the console runs on that host. What the host says of
    itself decides whether it is asked, and at which port, never which machine: it could name any other one.
    """
    try:
        bound = ipaddress.ip_address(server.bind_address or "")
    except ValueError:
        return None
    if server.is_on_demand or not 1 <= server.port <= 65535:
        return None
    found = _own_address(bound) if is_local else _remote_address(bound, address)
    if found is None:
        return None
    authority = f"[{found}]" if ":" in found else found
    scheme = "https" if server.has_tls else "http"
    return Target(server.host, server.name, f"{scheme}://{authority}:{server.port}/health")


def _own_address(bound: Address) -> str | None:
    """Where a server of this machine listens; None where this machine has no such address."""
    if bound.is_unspecified:
        return "127.0.0.1" if bound.version == 4 else "::1"
    if bound.is_loopback:
        return str(bound)
    with socket.socket(socket.AF_INET if bound.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(bound), 0))
        except OSError:
            return None
    return str(bound)


def _remote_address(bound: Address, address: str) -> str | None:
    """The inventory's address, unless the server listens only at another one of its host."""
    if bound.is_loopback:
        return None
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        # A name: it means the address that the server listens at, or the server does not answer.
        return address
    return address if bound.is_unspecified or bound == known else None


def _session(timeout: aiohttp.ClientTimeout, connector: aiohttp.TCPConnector | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=False, auto_decompress=False, headers=HEADERS
    )


async def _body(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of an answer. Raises ValueError if it has more bytes than this."""
    found = bytearray()
    async for part in answer.content.iter_any():
        found += part
        if len(found) > limit:
            raise ValueError(f"the answer has more than {limit} bytes")
    return bytes(found)


async def sweep(targets: Iterable[Target], deadline_seconds: float = DEADLINE_SECONDS) -> dict[Key, dict[str, Any]]:
    """{(host, server): {"state": "ready", "loading" or "unhealthy", "reason"}} of all targets, within the deadline.

    Those that have not answered by then have is_late too.
    """
    timeout = aiohttp.ClientTimeout(total=deadline_seconds)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, force_close=True, ttl_dns_cache=300)
    async with _session(timeout, connector) as session:
        pending = {asyncio.ensure_future(_health(session, one, deadline_seconds)): one for one in targets}
        if not pending:
            return {}
        done, late = await asyncio.wait(pending, timeout=deadline_seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        found = {pending[task].key: task.result() for task in done}
    return {**found, **{pending[task].key: _silent(deadline_seconds) for task in late}}


def _silent(seconds: float) -> dict[str, Any]:
    return {"state": "unhealthy", "reason": f"/health did not answer within {seconds} s.", "is_late": True}


async def _health(session: aiohttp.ClientSession, one: Target, seconds: float) -> dict[str, Any]:
    try:
        # Only whether it answers is read, and no key is sent, so the certificate does not matter.
        async with session.get(one.url, ssl=False, allow_redirects=False) as answer:
            if answer.status == 200:
                return {"state": "ready", "reason": None}
            if answer.status == 503:
                return {"state": "loading", "reason": None}
            return {"state": "unhealthy", "reason": f"/health answered {answer.status}."}
    except TimeoutError:
        return _silent(seconds)
    except aiohttp.ClientConnectorError as error:
        return {"state": "unhealthy", "reason": f"Nothing answers on its port: {error.strerror or error.os_error}."}
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # ValueError: an address that no name or URL can be.
        return {"state": "unhealthy", "reason": f"/health failed: {type(error).__name__}."}


_STATUS = re.compile(
    r'^haproxy_server_status\{proxy="(?P<model>[^"]+)",server="(?P<server>[^"]+)",state="(?P<state>[A-Z]+)"\} 1$', re.M
)
GATEWAY_STATES = {"UP": "ready", "DOWN": "unhealthy", "DRAIN": "ready"}


def gateway_states(metrics: str, servers: Mapping[str, Key]) -> dict[Key, dict[str, Any]]:
    """What a gateway's metrics say of servers, by the name that it gives each of them. MAINT says nothing."""
    found: dict[Key, dict[str, Any]] = {}
    for match in _STATUS.finditer(metrics):
        key, state = servers.get(match["server"]), GATEWAY_STATES.get(match["state"])
        if key is not None and state is not None:
            reason = None if state == "ready" else "The gateway cannot reach it."
            found[key] = {"state": state, "reason": reason}
    return found


async def read_metrics(url: str, seconds: float = 2.0) -> str:
    """The text of a gateway's /metrics; empty where it does not answer in time."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        return ""
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with (
            _session(timeout) as session,
            session.get(url, ssl=False, allow_redirects=False) as answer,
        ):
            return (await _body(answer, MAX_METRICS_BYTES)).decode() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return ""


async def read_slots(server: Server, address: str, is_local: bool, seconds: float = 1.0) -> list[dict[str, Any]] | None:
    """{"id", "is_processing", "n_ctx"} of each slot; None where the server does not show them to anyone."""
    found = target(server, address, is_local)
    if found is None:
        return None
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with (
            _session(timeout) as session,
            session.get(found.url.removesuffix("health") + "slots", ssl=False, allow_redirects=False) as answer,
        ):
            slots = json.loads(await _body(answer, MAX_BYTES)) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
        return None
    return _slots(slots) or None


def _slots(found: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": received.whole(one.get("id")),
            "is_processing": one.get("is_processing") is True,
            "n_ctx": received.whole(one.get("n_ctx")),
        }
        for one in (found[:MAX_SLOTS] if isinstance(found, list) else ())
        if isinstance(one, dict) and received.whole(one.get("id")) is not None
    ]
