# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of all hosts' registries, by id, with what the manifest says about where a file is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .facts import Host
from .inventory import Inventory

MANIFEST = "models.lock.yml"
HIDDEN = ".magi-llama"
MAX_BYTES = 8 << 20
_OF_MODEL = ("id", "kind", "tier", "architecture", "size_bytes", "path", "context_length")
_PROVENANCE = ("source", "base_model", "license", "quantization", "sha256")


def merged(hosts: Iterable[Host], manifest: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each model id, sorted: its hosts, and of its record what the first host with a value knows."""
    found: dict[str, dict[str, Any]] = {}
    for host in hosts:
        for model in host.models:
            entry = found.setdefault(
                model["id"], {**dict.fromkeys(_OF_MODEL), "hosts": [], "display_name": None, "provenance": {}}
            )
            entry["hosts"].append(host.name)
            for key in (*_OF_MODEL, "display_name"):
                if entry[key] is None:
                    entry[key] = model.get(key)
            for key, value in _provenance(model, manifest).items():
                entry["provenance"].setdefault(key, value)
    return [{**found[key], "provenance": found[key]["provenance"] or None} for key in sorted(found)]


def rejected(hosts: Iterable[Host]) -> list[dict[str, Any]]:
    """The files that a scan has refused: {"host", "path", "reason"}."""
    return [
        {"host": host.name, "path": str(one.get("path", "")), "reason": str(one.get("reason", ""))}
        for host in hosts
        for one in host.rejected
    ]


def _provenance(model: Mapping[str, Any], manifest: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    name = Path(str(model.get("path") or "")).name
    # Names in the manifest are relative to a folder of models, which differs from host to host.
    entry = next((one for path, one in manifest.items() if name and Path(path).name == name), {})
    found = {key: model[key] for key in _PROVENANCE if model.get(key)}
    return {**found, **{str(key): value for key, value in entry.items() if isinstance(value, (str, int, float))}}


def manifest_of(inventory: Inventory, path: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files by name, for the inventory at path; empty where it has to be signed.

    Scans verify the signature, and what they have found in the files then is all that is known for certain.
    """
    return {} if any(host.wants_signature for host in inventory.hosts.values()) else read_manifest(path)


def read_manifest(inventory: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files by name; empty without one, or where it cannot be read. Its signature is not looked at."""
    folder = inventory if inventory.is_dir() else inventory.parent
    for path in (folder / HIDDEN / MANIFEST, folder / MANIFEST):
        try:
            if path.stat().st_size > MAX_BYTES:
                continue
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        files = content.get("files") if isinstance(content, dict) else None
        if isinstance(files, dict):
            return {str(name): one for name, one in files.items() if isinstance(one, dict)}
    return {}
