# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Checksums of model files, and the manifest that says what they ought to be."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core import pool
from .._core.errors import MagiError
from .bounded_reader import GgufError
from .gguf import open_regular
from .source_files import content_keys

MANIFEST_VERSION = 1
_BLOCK = 1 << 20


class ManifestError(MagiError):
    """Raised for an invalid manifest."""


# Size, modification time and change time of a file.
ContentKey = tuple[int, int, int]


def sha256_of(path: str, key: ContentKey) -> str | None:
    """Return the file's checksum; None if it cannot be read or is no longer the file of this key."""
    try:
        descriptor, status = open_regular(path.encode("utf-8", "surrogateescape"))
    except GgufError:
        return None
    digest = hashlib.sha256()
    try:
        while block := os.read(descriptor, _BLOCK):
            digest.update(block)
        after = os.fstat(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    keys = [(found.st_size, found.st_mtime_ns, found.st_ctime_ns) for found in (status, after)]
    return digest.hexdigest() if keys == [tuple(key)] * 2 else None


@dataclass(frozen=True)
class Progress:
    """How many files and bytes have a known checksum, and the totals."""

    files: int
    total_files: int
    size: int
    total_size: int

    @property
    def complete(self) -> bool:
        return self.files == self.total_files


def _keys(record: Mapping[str, Any]) -> list[ContentKey]:
    """Return the key of each of a record's files; without change times none of them matches a file."""
    fingerprint = record["fingerprint"]
    files = fingerprint.get("shards") or [(fingerprint["size"], fingerprint["mtime_ns"])]
    return content_keys(fingerprint) or [(file[0], file[1], -1) for file in files]


def _sizes(record: Mapping[str, Any]) -> list[int]:
    """Return the size of each of a record's files."""
    return [size for size, _mtime, _ctime in _keys(record)]


def add_checksums(
    records: Sequence[dict[str, Any]],
    unread: set[str],
    *,
    deadline: float | None = None,
    workers: int | None = None,
) -> Progress:
    """Set the missing sha256 values of all records, in the order of their files.

    Stops at the deadline; the remaining values are None. A file that cannot be read also has None and is added to
    unread: later calls do not try files in unread again.
    """
    pending: list[tuple[dict[str, Any], int, int]] = []
    known: list[tuple[dict[str, Any], int, int]] = []
    for record in records:
        record["sha256"] = list(record.get("sha256") or [None] * len(record["files"]))
        for number, size in enumerate(_sizes(record)):
            is_known = record["sha256"][number] or record["files"][number] in unread
            (known if is_known else pending).append((record, number, size))
    # The largest first, so that the end does not wait for one core with a large file.
    pending.sort(key=lambda item: -item[2])

    def work(index: int) -> str | None:
        record, number, _size = pending[index]
        return sha256_of(record["files"][number], _keys(record)[number])

    outcome = pool.run(len(pending), work, workers=workers, deadline=deadline, serial_seconds=0.0)
    for index, digest in outcome.results.items():
        record, number, _size = pending[index]
        record["sha256"][number] = digest
    for index in (*outcome.results, *outcome.lost):
        record, number, _size = pending[index]
        if record["sha256"][number] is None:
            unread.add(record["files"][number])
    done = [*known, *(pending[index] for index in (*outcome.results, *outcome.lost))]
    return Progress(
        len(done),
        len(known) + len(pending),
        sum(size for _record, _number, size in done),
        sum(size for _record, _number, size in (*known, *pending)),
    )


def _relative(path: str, scan_paths: Sequence[str]) -> str:
    """Return the path relative to the innermost scan path that contains it."""
    inside = [root.rstrip("/") + "/" for root in scan_paths if path.startswith(root.rstrip("/") + "/")]
    return path[len(max(inside, key=len)) :] if inside else os.path.basename(path)


def _checked(content: Mapping[str, Any]) -> list[tuple[str, int, str | None, Mapping[str, Any]]]:
    """Return path, size, sha256 and record of every file of the models and companions."""
    checked = []
    for record in (*content["models"], *content["companions"]):
        sizes = _sizes(record)
        digests = record.get("sha256") or [None] * len(sizes)
        checked += [(path, size, digest, record) for path, size, digest in zip(record["files"], sizes, digests)]
    return checked


def manifest_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a registry with checksums: {"schema_version", "files": {relative path: …}}.

    Files with the same relative path in two scan paths are listed by their absolute paths.
    """
    files: dict[str, Any] = {}
    checked = _checked(content)
    names = Counter(_relative(path, content["scan_paths"]) for path, *_rest in checked)
    for path, size, digest, record in checked:
        name = _relative(path, content["scan_paths"])
        if digest:
            entry = {"sha256": digest, "size": size, "source": record.get("source")}
            files[name if names[name] == 1 else path] = entry
    return {"schema_version": MANIFEST_VERSION, "files": dict(sorted(files.items()))}


def without_checksum(content: Mapping[str, Any]) -> list[str]:
    """Return files without a checksum: they could not be read completely, or changed while they were read."""
    return [path for path, _size, digest, _record in _checked(content) if not digest]


def merge_manifests(manifests: Sequence[Mapping[str, Any]], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Merge several hosts' manifests. Raises ManifestError if two have different contents for one relative path.

    known is a manifest that includes further hosts: its entries are preserved unless these manifests replace them.
    """
    files: dict[str, Any] = {}
    for manifest in manifests:
        for name, entry in manifest["files"].items():
            if files.setdefault(name, entry)["sha256"] != entry["sha256"]:
                raise ManifestError(
                    f"{name} differs between two hosts (sha256 {files[name]['sha256'][:12]}… and "
                    f"{entry['sha256'][:12]}…): copy the right one to all hosts, or write separate manifests, with "
                    "--limit and a different registry_manifest_dest."
                )
    files = {**(check_manifest(known) if known else {}), **files}
    return {"schema_version": MANIFEST_VERSION, "files": dict(sorted(files.items()))}


def check_manifest(manifest: Any) -> dict[str, dict[str, Any]]:
    """Return the manifest's files. Raises ManifestError, which names the key."""
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("files"), Mapping):
        raise ManifestError("The manifest has no mapping `files`. Write it again with manifest.yml.")
    if manifest.get("schema_version") != MANIFEST_VERSION:
        found = str(manifest.get("schema_version"))[:40]
        raise ManifestError(
            f"The manifest's schema_version is {found}, not {MANIFEST_VERSION}. Write it again with manifest.yml."
        )
    for name, entry in manifest["files"].items():
        digest = entry.get("sha256") if isinstance(entry, Mapping) else None
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ManifestError(f"The manifest's files.{name}.sha256 is not a SHA-256 in 64 hexadecimal digits.")
        size = entry.get("size")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise ManifestError(f"The manifest's files.{name}.size is not a number of bytes.")
    return dict(manifest["files"])


@dataclass
class Differences:
    """Differences between a host's files and a manifest: messages about files that differ, and names of the others."""

    differing: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)


def differences(content: Mapping[str, Any], manifest: Any) -> Differences:
    """Compare a registry with checksums against a manifest. Raises ManifestError."""
    listed = check_manifest(manifest)
    result = Differences()
    seen: set[str] = set()

    def entry_of(path: str) -> dict[str, Any] | None:
        names = [name for name in (path, _relative(path, content["scan_paths"])) if name in listed]
        seen.update(names)
        return listed[names[0]] if names else None

    for path, size, digest, _record in _checked(content):
        entry = entry_of(path)
        if entry is None:
            result.unlisted.append(path)
        elif entry.get("size") not in (None, size):
            result.differing.append(f"{path} has {size} bytes, the manifest says {entry['size']}")
        elif digest is None:
            result.differing.append(f"{path} could not be read completely, or changed while it was read")
        elif digest != entry["sha256"]:
            result.differing.append(f"{path} has the sha256 {digest}, the manifest says {entry['sha256']}")
    for record in content["rejected"]:
        # A rejected file may be on the manifest too, by the same path.
        for path in record.get("files") or [record["path"]]:
            if entry_of(path) is not None:
                result.differing.append(f"{path} is rejected: {record['reason']}")
    result.missing = sorted(listed.keys() - seen)
    return result
