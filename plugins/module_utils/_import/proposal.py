# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A profile and variables of an inventory, as a proposal, from servers of another program."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.links import is_below
from .._core.values import is_loopback
from .._models.names import slug
from .._runtime.special_flags import MANAGED_FLAGS
from .settings import ImportFault, Server

# The role's own range.
FIRST_PORT, LAST_PORT = 8080, 8099


@dataclass
class Proposal:
    """profile and variables are contents of YAML files; left_out are sentences, each with the server's name."""

    profile: dict[str, Any]
    variables: dict[str, Any]
    left_out: list[str] = field(default_factory=list)


def proposal_of(servers: Sequence[Server], source: str) -> Proposal:
    """Raises ImportFault where no server has a model."""
    left_out = [f"{one.name}: {text}" for one in servers for text in one.left_out]
    by_model: dict[str, list[Server]] = {}
    for one in servers:
        model = _model_id(one)
        if model:
            by_model.setdefault(model, []).append(one)
            if one.alias not in ("", model):
                left_out.append(f"{one.name}: alias: {MANAGED_FLAGS['alias']}; gateway_aliases has other names.")
        else:
            left_out.append(f"{one.name}: it names no model file, so it has no entry in the profile.")
    if not by_model:
        raise ImportFault(f"{source}: no server names a model file. Nothing was written. {' '.join(left_out)}".strip())
    common = _common([one for same in by_model.values() for one in same])
    entries = []
    for model, same in by_model.items():
        first, *others = same
        alike = [one for one in others if one.parameters == first.parameters]
        left_out += [
            f"{one.name}: a profile names a model once, and {first.name} has the same one with other parameters."
            for one in others
            if one not in alike
        ]
        entries.append(_entry(model, [first, *alike], common, left_out))
    profile: dict[str, Any] = {"description": f"Imported from {source}", "enabled_models": entries}
    if common:
        profile["parameters"] = common
    used = [one for same in by_model.values() for one in same]
    return Proposal(profile, _variables(used, left_out), left_out)


def _model_id(server: Server) -> str:
    # A file of Ollama has a digest for a name.
    named = server.name if os.path.basename(server.model).startswith("sha256-") else server.model
    return slug(named) if server.model else ""


def _common(servers: Sequence[Server]) -> dict[str, Any]:
    """The parameters that all servers have with the same value."""
    first = servers[0].parameters
    if len(servers) < 2:
        return {}
    return {
        key: value
        for key, value in first.items()
        if all(key in one.parameters and one.parameters[key] == value for one in servers)
    }


def _entry(model: str, same: Sequence[Server], common: dict[str, Any], left_out: list[str]) -> Any:
    parameters = {key: value for key, value in same[0].parameters.items() if key not in common}
    ports = [one.port for one in same]
    entry: dict[str, Any] = {"model": model}
    if len(same) > 1:
        entry["instances"] = len(same)
    if ports[0] is not None and all(port == ports[0] + place for place, port in enumerate(ports)):
        entry["port"] = ports[0]
    elif any(port is not None for port in ports):
        left_out.append(
            f"{same[0].name}: the ports of its instances do not follow each other, so the plan chooses them; "
            "servers_ports pins each."
        )
    if parameters:
        entry["parameters"] = parameters
    return entry if len(entry) > 1 else model


def _variables(servers: Sequence[Server], left_out: list[str]) -> dict[str, Any]:
    """What the inventory has to say: folders of models, addresses, the range of ports, the key file."""
    found: dict[str, Any] = {}
    folders = _top_folders(os.path.dirname(one.model) for one in servers if os.path.isabs(one.model))
    if folders:
        found["registry_scan_paths"] = folders
    left_out += [
        f"{one.name}: its model {one.model} is a relative path: add its folder to registry_scan_paths."
        for one in servers
        if not os.path.isabs(one.model)
    ]
    hosts = sorted({one.host for one in servers if one.host and not is_loopback(one.host)})
    if len(hosts) == 1:
        found["servers_host"] = hosts[0]
    elif hosts:
        left_out.append(f"servers_host: there are several addresses ({', '.join(hosts)}), and all servers have one.")
    ports = [one.port for one in servers if one.port is not None]
    if ports and not FIRST_PORT <= min(ports) <= max(ports) <= LAST_PORT:
        found["servers_port_range_start"], found["servers_port_range_end"] = min(ports), max(*ports, min(ports) + 19)
    keys = sorted({one.key_file for one in servers if one.key_file})
    if len(keys) == 1:
        found["servers_api_key_file"] = keys[0]
    elif keys:
        left_out.append(f"servers_api_key_file: there are several files ({', '.join(keys)}), and all servers have one.")
    return found


def _top_folders(folders: Iterable[str]) -> list[str]:
    """The folders that are not below another one: a scan reads folders below its own."""
    found: list[str] = []
    for folder in sorted({os.path.normpath(one) for one in folders}):
        if not is_below(folder, found):
            found.append(folder)
    return found
