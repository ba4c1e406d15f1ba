# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The registry file: reading and checking it, what of it a scan can use again, and writing it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._core.digests import digest_of
from .._core.errors import MagiError
from .._core.files import write_atomic
from .._core.text import printable

SCHEMA_VERSION = 1

# Raised whenever the same file gives another record than before, so that kept records are not reused.
READER_VERSION = 2
_RECORD_KEYS = {
    "models": {
        "id", "display_name", "kind", "path", "files", "size_bytes", "architecture", "quantization", "tier",
        "context_length", "embedding_length", "block_count", "mmproj", "memory", "fingerprint", "warnings",
    },
    "companions": {"path", "files", "kind", "embedding_length", "quantization", "fingerprint"},
    "rejected": {"path", "reason"},
}  # fmt: skip
_KEY_TYPES = {"id": str, "path": str, "reason": str, "files": list, "fingerprint": dict, "warnings": list}
_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")


class RegistryError(MagiError):
    """A scan that cannot be done, or a registry that cannot be written."""


def encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def is_within(path: bytes, roots: Iterable[bytes]) -> bool:
    return any(path == root or path.startswith(root.rstrip(b"/") + b"/") for root in roots)


@dataclass(frozen=True)
class Kept:
    """A registry file as it was found: its content, and what of it can be reused."""

    content: dict[str, Any] | None = None
    records: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = field(default_factory=dict)
    warning: str | None = None

    @property
    def ids(self) -> dict[str, str]:
        """The id of every path that is a model, or was one; what was one longest ago comes first."""
        content = self.content or {}
        return {**content.get("ids", {}), **{model["path"]: model["id"] for model in content.get("models", [])}}

    def tried(self, what: str) -> set[str]:
        """What earlier slices of this scan have dealt with: "groups" by their first path, or "checksums"."""
        return set((self.content or {}).get("tried", {}).get(what, ()))


def partial_path(path: str) -> str:
    """The path of an incomplete scan, next to the registry at path."""
    return path + ".partial"


def load(path: str, resume: str | None = None) -> Kept:
    """The registry at path; without content and with a warning where there is none, or it is damaged.

    resume is what a scan that is not complete has called itself: only it takes what the file says of its progress.
    """
    try:
        with open(encode(path), "rb") as stream:
            content = json.loads(stream.read())
        _validate(content)
        if resume is None or content.get("resume") != resume:
            content.pop("tried", None)
    except FileNotFoundError:
        return Kept(warning=f"There is no registry at {printable(path)} yet: every file is read.")
    except OSError as error:
        return Kept(warning=f"The registry {printable(path)} cannot be read ({error.strerror}): every file is read.")
    except (ValueError, RecursionError, RegistryError) as error:
        return Kept(warning=f"The registry {printable(path)} is damaged ({error}): every file is read.")
    return Kept(content, _reusable(content))


def _validate(content: Any) -> None:
    """Raise RegistryError where the content is not a registry."""
    if not isinstance(content, dict):
        raise RegistryError("it is not a JSON object")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise RegistryError(f"its schema_version is {content.get('schema_version')!r:.40}, not {SCHEMA_VERSION}")
    for part, keys in _RECORD_KEYS.items():
        records = content.get(part)
        if not isinstance(records, list):
            raise RegistryError(f"{part} is not a list")
        for record in records:
            if not isinstance(record, dict) or not keys <= record.keys():
                raise RegistryError(f"a record of {part} lacks keys")
            for key, kind in _KEY_TYPES.items():
                if key in record and not isinstance(record[key], kind):
                    raise RegistryError(f"{key} of a record of {part} has a wrong type")
    for key in ("ids", "tried"):
        if not isinstance(content.get(key, {}), dict):
            raise RegistryError(f"{key} is not a JSON object")
    if not all(isinstance(value, str) for value in content.get("ids", {}).values()):
        raise RegistryError("one of ids is not a text")
    for paths in content.get("tried", {}).values():
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise RegistryError("tried holds something other than lists of paths")
    _check_places(content)


def _check_places(content: Mapping[str, Any]) -> None:
    """Raise RegistryError where a path leads out of the scanned folders, or an id out of a folder of launch configs."""
    roots = [os.path.abspath(encode(str(path))) for path in content.get("scan_paths") or []]
    projectors = {record["path"] for record in content["companions"]}
    for record in [*content["models"], *content["companions"]]:
        paths = [str(path) for path in record["files"]]
        if not paths or record["path"] != paths[0]:
            raise RegistryError("the path of a record is not its first file")
        for path in paths:
            encoded = encode(path)
            if os.path.normpath(encoded) != encoded or not is_within(encoded, roots):
                raise RegistryError(f"{printable(path)} is not in the scanned folders")
    for model in content["models"]:
        if not _ID.fullmatch(model["id"]):
            raise RegistryError(f"{model['id']!r:.40} is not an id")
        if model["mmproj"] is not None and model["mmproj"] not in projectors:
            raise RegistryError(f"the projector of {model['id']} is not among the companions")


def _reusable(content: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[str, dict[str, Any]]]:
    if content.get("reader_version") != READER_VERSION:
        return {}
    records = {}
    tried = set(content.get("tried", {}).get("groups", ()))
    for part in _RECORD_KEYS:
        for record in content[part]:
            if "fingerprint" in record or record["path"] in tried:
                records[tuple(map(str, record.get("files") or [record["path"]]))] = (part, record)
    return records


def changes_between(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, list[str]]:
    """The ids of the models that are new, gone, or other files than before."""
    old = {model["id"]: model for model in (before or {}).get("models", [])}
    new = {model["id"]: model for model in after["models"]}
    return {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "replaced": sorted(
            name
            for name in new.keys() & old.keys()
            if (new[name]["path"], new[name]["fingerprint"]) != (old[name]["path"], old[name]["fingerprint"])
        ),
    }


# What a fact of thousands of models says of each, which is what selectors go by: every task of a run copies all facts
# several times, and a controller holds those of all hosts.
_SHORT_KEYS = ("id", "kind", "path", "architecture", "tier")


def short_content(content: Mapping[str, Any]) -> dict[str, Any]:
    """The registry with the few values of each model that choosing it takes."""
    return {**content, "ids": {}, "models": [{key: model[key] for key in _SHORT_KEYS} for model in content["models"]]}


def diff_lines(content: Mapping[str, Any] | None) -> str:
    """A human-readable registry: one line per model, companion and rejected file."""
    if content is None:
        return ""
    lines = [
        f"{model['id']}  {model['tier'] or '-'}  {model['size_bytes']}  {printable(model['path'])}  {_short(model)}"
        for model in content["models"]
    ]
    lines += [f"{record['kind']}  {printable(record['path'])}  {_short(record)}" for record in content["companions"]]
    lines += [f"rejected  {printable(record['path'])}: {record['reason']}" for record in content["rejected"]]
    return "".join(f"{line}\n" for line in lines)


def _short(record: Mapping[str, Any]) -> str:
    """A few letters that change with the file, so that one replaced by another of equal size shows."""
    return digest_of(record["fingerprint"])[:8]


def serialize(content: Mapping[str, Any]) -> bytes:
    """The registry file's bytes: a line for each record, so that it can be read, searched and compared."""
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = ",\n".join("  " + json.dumps(record) for record in value)
            lines.append(f"{json.dumps(key)}: [\n{body}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def save(path: str, content: Mapping[str, Any]) -> None:
    """Write the registry file. Raises RegistryError."""
    try:
        write_atomic(path, serialize(content), 0o644)
    except OSError as error:
        raise RegistryError(
            f"The registry {printable(path)} cannot be written: {error.strerror or error}. "
            "Make its folder writable for the connecting user, or set another registry_path."
        ) from error


def require(path: str) -> dict[str, Any]:
    """The registry at path. Raises RegistryError where there is none."""
    found = load(path)
    if found.content is None:
        raise RegistryError(f"{found.warning} Run scan.yml or site.yml to make it.")
    return found.content
