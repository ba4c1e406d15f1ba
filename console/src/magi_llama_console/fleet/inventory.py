# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of the inventory, from ansible-inventory --list. Only a few variables are kept, by name, and no secret."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

SECONDS = 60
# Hosts of these groups run no servers, where no group models says which do.
OTHER_GROUPS = ("gateways", "console", "redis", "monitoring")
# So long an inventory that could not be read is not read again, unless one of its files has changed.
ERROR_SECONDS = 5.0
LOCAL = ("localhost", "127.0.0.1", "::1")
# Where a gateway's metrics are without these variables: its defaults in the collection.
METRICS_HOST, METRICS_PORT = "127.0.0.1", 8071


class InventoryError(Exception):
    """The inventory cannot be read: the text has Ansible's own message."""


@dataclass(frozen=True, slots=True)
class InventoryHost:
    """A host that runs servers, as the inventory describes it."""

    name: str
    address: str
    is_local: bool = False
    groups: tuple[str, ...] = ()
    states_dir: str | None = None
    profile: str | None = None
    # Whether its scans take a manifest with a valid signature only.
    wants_signature: bool = False

    @property
    def proxy_name(self) -> str:
        """Its name as part of the names of its servers in a gateway's configuration."""
        plain = re.sub(r"[^A-Za-z0-9._-]", "-", self.name)
        return plain if plain == self.name else f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The hosts that run servers by name, in the inventory's order, and the metrics URLs of the gateways."""

    hosts: Mapping[str, InventoryHost] = field(default_factory=dict)
    gateways: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def parse(listing: Mapping[str, Any]) -> Inventory:
    """The inventory of what ansible-inventory --list printed."""
    members = _members(listing)
    variables = (listing.get("_meta") or {}).get("hostvars") or {}
    names = members["models"] if "models" in members else _without_others(members)
    hosts = {name: _host(name, members, variables.get(name, {})) for name in names or ["localhost"]}
    gateways = [_metrics_url(name, variables.get(name, {})) for name in members.get("gateways", ())]
    return Inventory(hosts, tuple(url for url in gateways if url), members)


def _without_others(members: Mapping[str, Sequence[str]]) -> list[str]:
    """As the collection's filter model_hosts has it."""
    every = members.get("all", ())
    others = {host for group in OTHER_GROUPS for host in members.get(group, ())}
    return [host for host in every if host not in others] or list(every)


def _members(listing: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The hosts of each group, with those of the groups inside it."""

    def collect(name: str, above: frozenset[str]) -> list[str]:
        group = listing.get(name) or {}
        found = list(group.get("hosts") or ())
        for child in group.get("children") or ():
            if child not in above:
                found += collect(child, above | {child})
        return list(dict.fromkeys(found))

    return {name: tuple(collect(name, frozenset({name}))) for name in listing if name != "_meta"}


def _text(value: Any) -> str | None:
    # A variable with a template in it has no value here: only a run can give it one.
    return value if isinstance(value, str) and value and "{{" not in value else None


def _host(name: str, members: Mapping[str, Sequence[str]], variables: Mapping[str, Any]) -> InventoryHost:
    address = _text(variables.get("ansible_host")) or name
    groups = tuple(group for group, hosts in members.items() if name in hosts and group not in ("all", "ungrouped"))
    return InventoryHost(
        name,
        address,
        variables.get("ansible_connection") == "local" or address in LOCAL,
        groups,
        _text(variables.get("servers_state_dir")),
        _text(variables.get("servers_profile")) or _text(variables.get("profile")),
        bool(variables.get("registry_manifest_public_key")),
    )


def _metrics_url(name: str, variables: Mapping[str, Any]) -> str | None:
    address = _text(variables.get("ansible_host")) or name
    is_local = variables.get("ansible_connection") == "local" or address in LOCAL
    bound = variables.get("gateway_metrics_host", METRICS_HOST)
    port = variables.get("gateway_metrics_port", METRICS_PORT)
    if not isinstance(bound, str) or not str(port).isdecimal():
        return None
    if bound.startswith(("127.", "::1", "localhost")):
        if not is_local:
            return None
    elif bound in ("0.0.0.0", "::", "*"):
        bound = "127.0.0.1" if is_local else address
    return f"http://{f'[{bound}]' if ':' in bound else bound}:{port}/metrics"


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file of the inventory does: names, sizes and modification times, without hidden folders."""
    if not path.is_dir():
        status = path.stat()
        return ((str(path), status.st_size, status.st_mtime_ns),)
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                continue
            found.append((os.path.join(folder, name), status.st_size, status.st_mtime_ns))
    return tuple(found)


class InventoryReader:
    """Reads the inventory again when one of its files has changed."""

    def __init__(self, path: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """command is ansible-inventory with its options, without -i and --list."""
        self.path = path
        self._command = [*command, "-i", str(path), "--list"]
        self._environment = dict(environment)
        self._stamp: tuple[tuple[str, int, int], ...] = ()
        self._inventory: Inventory | None = None
        # What was wrong with which files, and until when that is said without another look.
        self._error: tuple[tuple[tuple[str, int, int], ...], str, float] | None = None
        self._reading = asyncio.Lock()

    async def read(self) -> Inventory:
        """The inventory as its files are now. Raises InventoryError."""
        async with self._reading:
            try:
                seen = stamp(self.path)
            except OSError as error:
                raise InventoryError(f"{self.path} cannot be read: {error.strerror}.") from error
            if self._inventory is None or seen != self._stamp:
                self._inventory = await self._read_again(seen)
                self._stamp = seen
            return self._inventory

    async def _read_again(self, seen: tuple[tuple[str, int, int], ...]) -> Inventory:
        if self._error is not None and self._error[0] == seen and monotonic() < self._error[2]:
            raise InventoryError(self._error[1])
        try:
            return parse(await self._list())
        except InventoryError as error:
            self._error = (seen, str(error), monotonic() + ERROR_SECONDS)
            raise

    async def _list(self) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise InventoryError(f"ansible-inventory did not end within {SECONDS} s for {self.path}.") from error
        if process.returncode:
            raise InventoryError(f"{self.path}: {_last(errors) or f'exit status {process.returncode}'}")
        try:
            listing: dict[str, Any] = json.loads(output)
        except ValueError as error:
            raise InventoryError(f"ansible-inventory printed no JSON for {self.path}.") from error
        return listing


def _last(errors: bytes) -> str:
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    found = [line for line in lines if line.startswith(("ERROR", "[ERROR]"))]
    return (found or lines or [""])[-1][:500]
