# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The registry file: read, check and write it, and find the records that a scan can reuse."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._core.digests import digest_of
from .._core.documents import (
    NAME,
    NULL,
    NUMBER,
    Document,
    DocumentError,
    Fields,
    Map,
    Maybe,
    NewerDocumentError,
)
from .._core.errors import MagiError
from .._core.files import json_of, write_atomic
from .._core.ownership import open_trusted
from .._core.text import printable

# Increase this whenever the same file gives a different record, so that old records are not reused.
READER_VERSION = 3
_TEXT = (str, NULL)
_COUNT = (int, NULL)
_FINGERPRINT = Fields({"size": int, "mtime_ns": int, "inode": int}, {"ctime_ns": int, "shards": [[int]]})
_FILE = {
    "source": _TEXT,
    "alias": str,
    "name": _TEXT,
    "parameter_count": int,
    "shards": int,
    "sha256": Maybe([_TEXT]),
}
_MODEL = Fields(
    {
        "id": NAME,
        "display_name": str,
        "kind": str,
        "path": str,
        "files": [str],
        "size_bytes": int,
        "architecture": _TEXT,
        "quantization": _TEXT,
        "tier": _TEXT,
        "context_length": int,
        "embedding_length": int,
        "block_count": int,
        "mmproj": _TEXT,
        "memory": dict,
        "fingerprint": _FINGERPRINT,
        "warnings": [str],
    },
    {
        **_FILE,
        "size_label": _TEXT,
        "bits_per_weight": (*NUMBER, NULL),
        "head_count": (int, list),
        "head_count_kv": (int, list),
        "expert_count": int,
        "tokenizer": _TEXT,
        "chat_template_sha256": _TEXT,
    },
)
_COMPANION = Fields(
    {
        "path": str,
        "files": [str],
        "kind": str,
        "embedding_length": _COUNT,
        "quantization": _TEXT,
        "fingerprint": _FINGERPRINT,
    },
    {**_FILE, "size_bytes": int, "architecture": _TEXT, "projector_type": _TEXT},
)
_REJECTED = Fields({"path": str, "reason": str}, {"files": [str], "fingerprint": _FINGERPRINT})
_PARTS = {"models": [_MODEL], "companions": [_COMPANION], "rejected": [_REJECTED]}
REGISTRY = Document(
    "registry",
    1,
    Fields(
        _PARTS,
        {
            "collection_version": str,
            "reader_version": int,
            "scan_paths": [str],
            "updated_at": str,
            "total": int,
            "ids": Map(str),
            "tried": Map([str]),
        },
    ),
)


class RegistryError(MagiError):
    """Raised for an impossible scan, or a registry that cannot be written."""


def encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def is_within(path: bytes, roots: Iterable[bytes]) -> bool:
    return any(path == root or path.startswith(root.rstrip(b"/") + b"/") for root in roots)


@dataclass(frozen=True)
class Kept:
    """A registry file as it was read: its content, and the records that can be reused."""

    content: dict[str, Any] | None = None
    records: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = field(default_factory=dict)
    # Why there is no content, without a full stop.
    problem: str | None = None

    @property
    def warning(self) -> str | None:
        """The problem and what it means for a scan."""
        return f"{self.problem}: every file is read." if self.problem else None

    @property
    def ids(self) -> dict[str, str]:
        """The id of every path that is or was a model, the least recent first."""
        content = self.content or {}
        return {**content.get("ids", {}), **{model["path"]: model["id"] for model in content.get("models", [])}}

    def tried(self, what: str) -> set[str]:
        """What earlier slices of this scan have processed: "groups" by their first path, or "checksums"."""
        return set((self.content or {}).get("tried", {}).get(what, ()))


def partial_path(path: str) -> str:
    """Return the path of an incomplete scan's file, next to the registry at path."""
    return path + ".partial"


def is_registry(path: str) -> bool:
    """Whether a regular file is a registry, or one of an incomplete scan, of any version."""
    content = json_of(path)
    return isinstance(content.get("schema_version"), int) and all(isinstance(content.get(key), list) for key in _PARTS)


def load(path: str, resume: str | None = None) -> Kept:
    """Return the registry at path; without content and with the problem if it is missing or damaged.

    resume is the id of an incomplete scan: progress in the file is used only if it belongs to this scan.
    """
    try:
        with open_trusted(path) as stream:
            content = REGISTRY.load(json.loads(stream.read()))
        _check_places(content)
        if resume is None or content.get("resume") != resume:
            content.pop("tried", None)
    except FileNotFoundError:
        return Kept(problem=f"There is no registry at {printable(path)} yet")
    except OSError as error:
        return Kept(problem=f"The registry {printable(path)} cannot be read ({error.strerror})")
    except NewerDocumentError as error:
        return Kept(problem=f"{printable(path)} is not used ({str(error).rstrip('.')})")
    except (ValueError, RecursionError, DocumentError, RegistryError) as error:
        return Kept(problem=f"The registry {printable(path)} is damaged ({error})")
    return Kept(content, _reusable(content))


def _check_places(content: Mapping[str, Any]) -> None:
    """Raise RegistryError if a path is outside the scanned folders, or a projector is not a companion."""
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
        if model["mmproj"] is not None and model["mmproj"] not in projectors:
            raise RegistryError(f"the projector of {model['id']} is not among the companions")


def _reusable(content: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[str, dict[str, Any]]]:
    if content.get("reader_version") != READER_VERSION:
        return {}
    records = {}
    tried = set(content.get("tried", {}).get("groups", ()))
    for part in _PARTS:
        for record in content[part]:
            if "fingerprint" in record or record["path"] in tried:
                records[tuple(map(str, record.get("files") or [record["path"]]))] = (part, record)
    return records


def changes_between(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the ids of models that were added, removed or replaced."""
    old = {model["id"]: model for model in (before or {}).get("models", [])}
    new = {model["id"]: model for model in after["models"]}
    return {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "replaced": sorted(name for name in new.keys() & old.keys() if _identity(new[name]) != _identity(old[name])),
    }


def _identity(record: Mapping[str, Any]) -> list[Any]:
    """Return what differs if a file was replaced, and not if only its owner or mode was changed."""
    fingerprint = record["fingerprint"]
    shards = [shard[:3] for shard in fingerprint.get("shards", ())]
    return [record["path"], fingerprint["size"], fingerprint["mtime_ns"], fingerprint["inode"], shards]


# The keys of each model in the short fact, which are those that selectors use: every task of a run copies all facts
# several times, and the controller holds those of all hosts.
_SHORT_KEYS = ("id", "kind", "path", "architecture", "tier")


def short_content(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the registry with only those values of each model that selectors use."""
    return {**content, "ids": {}, "models": [{key: model[key] for key in _SHORT_KEYS} for model in content["models"]]}


def diff_lines(content: Mapping[str, Any] | None) -> str:
    """Return a human-readable registry: one line per model, companion and rejected file."""
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
    """Return a short hash of the fingerprint, so that a replacement of the same size is visible."""
    return digest_of(record["fingerprint"])[:8]


def serialize(content: Mapping[str, Any]) -> bytes:
    """Return the registry file's bytes: one line per record, so that it can be searched and compared."""
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
    """Return the registry at path. Raises RegistryError if it is missing or damaged."""
    found = load(path)
    if found.content is None:
        raise RegistryError(
            f"{found.problem}, so the models of this host are not known. Write it with scan.yml, or with site.yml "
            "without --skip-tags registry."
        )
    return found.content
