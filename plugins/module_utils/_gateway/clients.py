# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The clients of a gateway: their API keys, known by digest only, and what each may do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .fleet import GatewayError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LIMITS = ("rate_per_minute", "tokens_per_minute", "quota_tokens", "quota_period", "priority")
_KEYS = ("name", "key", "sha256", "models", "operator", *_LIMITS)
PERIODS = ("day", "month")
MAX_TOKENS = 1_000_000_000_000


@dataclass(frozen=True)
class Client:
    """Who may ask: digest is the SHA-256 of the API key in hex, models what it may use
    by any name of a model, all without it.

    A limit of 0 is none; quota_tokens is for a quota_period, day or month. The smaller the priority, the earlier
    a waiting request is served. An operator may see which models are loaded, and load one.
    """

    name: str
    digest: str
    models: tuple[str, ...] = ()
    rate_per_minute: int = 0
    priority: int = 0
    tokens_per_minute: int = 0
    quota_tokens: int = 0
    quota_period: str = "month"
    operator: bool = False


def parse_clients(entries: Sequence[Mapping[str, Any]]) -> list[Client]:
    """Return the clients of gateway_api_keys. Raises GatewayError with all errors; it repeats no key."""
    clients, errors = [], []
    names: set[str] = set()
    digests: dict[str, str] = {}
    for number, entry in enumerate(entries):
        where = f"gateway_api_keys[{number}]"
        try:
            client = _parse(entry, where)
        except GatewayError as error:
            errors.append(str(error))
            continue
        if client.name in names:
            errors.append(f"{where}.name: {client.name} is there twice.")
        names.add(client.name)
        holder = digests.setdefault(client.digest, client.name)
        if holder != client.name:
            errors.append(f"{where} ({client.name}) has the key of {holder}.")
        clients.append(client)
    if errors:
        raise GatewayError(" ".join(errors))
    return clients


def _parse(entry: Any, where: str) -> Client:
    if not isinstance(entry, Mapping):
        raise GatewayError(f"{where} must be a mapping with name and key.")
    unknown = sorted(set(map(str, entry)) - set(_KEYS))
    if unknown:
        raise GatewayError(f"{where}: unknown {', '.join(unknown)}; there are {', '.join(_KEYS)}.")
    name = str(entry.get("name", ""))
    if not _NAME.fullmatch(name):
        raise GatewayError(f"{where}.name must be 1 to 64 letters, digits and . _ @ -, not {name!r:.40}.")
    if ("key" in entry) == ("sha256" in entry):
        raise GatewayError(f"{where} ({name}) needs either key or sha256, the SHA-256 of the key in hex.")
    digest = str(entry.get("sha256", "")).lower()
    if "key" in entry:
        key = str(entry["key"])
        if len(key) < 8 or not all(0x20 < ord(character) < 0x7F for character in key):
            raise GatewayError(f"{where} ({name}).key must have 8 characters or more, and no white space.")
        digest = hashlib.sha256(key.encode()).hexdigest()
    if not _DIGEST.fullmatch(digest):
        raise GatewayError(f"{where} ({name}).sha256 must have 64 digits of hex.")
    models = entry.get("models") or []
    if not isinstance(models, (list, tuple)):
        raise GatewayError(f"{where} ({name}).models must be a list of names.")
    period = entry.get("quota_period", "month")
    if period not in PERIODS:
        raise GatewayError(f"{where} ({name}).quota_period must be day or month, not {period!r:.40}.")
    operator = entry.get("operator", False)
    if not isinstance(operator, bool):
        raise GatewayError(f"{where} ({name}).operator must be true or false, not {operator!r:.40}.")
    return Client(
        name,
        digest,
        tuple(str(model) for model in models),
        _number(entry.get("rate_per_minute", 0), 0, 1_000_000, f"{where} ({name}).rate_per_minute"),
        _number(entry.get("priority", 0), -1000, 1000, f"{where} ({name}).priority"),
        _number(entry.get("tokens_per_minute", 0), 0, MAX_TOKENS, f"{where} ({name}).tokens_per_minute"),
        _number(entry.get("quota_tokens", 0), 0, MAX_TOKENS, f"{where} ({name}).quota_tokens"),
        str(period),
        operator,
    )


def _number(value: Any, least: int, most: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise GatewayError(f"{where} must be a whole number from {least} to {most}, not {value!r:.40}.")
    return value


def client_maps(clients: Sequence[Client], names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The maps that HAProxy looks clients up in, by file name. HAProxy writes a digest in capitals.

    names has the models behind each name that a client's models may have.
    """
    return {
        "keys.map": {client.digest.upper(): client.name for client in clients},
        "limits.map": {client.name: client.rate_per_minute for client in clients if client.rate_per_minute},
        "priorities.map": {client.name: client.priority for client in clients if client.priority},
        "tokens.map": {client.name: client.tokens_per_minute for client in clients if client.tokens_per_minute},
        "quotas.map": {
            client.name: f"{client.quota_period} {client.quota_tokens}" for client in clients if client.quota_tokens
        },
        "operators.map": {client.name: 1 for client in clients if client.operator},
        "restricted.map": {client.name: 1 for client in clients if client.models},
        "grants.map": {
            f"{client.name}|{model}": 1 for client in clients for name in client.models for model in names.get(name, ())
        },
    }


def missing_grants(clients: Sequence[Client], names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a warning for each name in a client's models that no server has at present."""
    known = ", ".join(sorted(names)[:20]) or "none"
    return [
        f"gateway_api_keys ({client.name}).models: no server has {name}; there are {known}."
        for client in clients
        for name in client.models
        if name not in names
    ]


def client_entry(client: Client) -> dict[str, Any]:
    """What is kept of a client: an entry of gateway_api_keys with the digest of its key."""
    return {
        "name": client.name,
        "sha256": client.digest,
        "models": list(client.models),
        "operator": client.operator,
        **{key: getattr(client, key) for key in _LIMITS},
    }
