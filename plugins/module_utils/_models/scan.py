# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The registry of a host's models: reading the files that are new or changed, and keeping the result."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._core import pool
from .._core.text import printable
from .listing import Listing, list_files, normal_paths
from .names import assign_ids
from .projectors import pair_projectors
from .registry_file import READER_VERSION, REGISTRY, Kept, RegistryError, changes_between
from .source_files import SourceFile, content_keys, fingerprint_of
from .stores import earlier_path, stable_path

if TYPE_CHECKING:
    from .checksums import Progress

# The last id is remembered for this many paths that are not a model any more.
MAX_OLD_IDS = 2000


@dataclass(frozen=True)
class Scan:
    """The result of a scan. complete is False if the time limit was reached first, with done of total groups known.

    checksums is their progress, if they were requested and all headers are read.
    """

    content: dict[str, Any]
    warnings: list[str]
    changes: dict[str, list[str]]
    done: int
    total: int
    read: int
    checksums: Progress | None = None
    tried: dict[str, list[str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.done == self.total and (self.checksums is None or self.checksums.complete)

    def unfinished(self, resume: str) -> dict[str, Any]:
        """Return what to save for the next slice of this scan; resume is the scan's id."""
        return {**self.content, "resume": resume, "tried": self.tried}


def scan(
    scan_paths: Sequence[str],
    kept: Kept,
    *,
    partial: Kept | None = None,
    force: bool = False,
    follow_links: bool = False,
    checksums: bool = False,
    time_limit: float | None = None,
    workers: int | None = None,
    now: float | None = None,
) -> Scan:
    """Scan the folders, reading only files that are in neither kept (unless forced) nor partial, the previous slice.

    Stops reading after time_limit seconds, or after as long as the search took if that is longer: the next slice must
    search again. Raises RegistryError if no folder can be searched or none has a GGUF file.
    """
    scan_paths = normal_paths(scan_paths)
    started = time.monotonic()
    listing = list_files(scan_paths, follow_links=follow_links)
    found = time.monotonic()
    deadline = None if time_limit is None else found + (time_limit and max(time_limit, found - started))
    _refuse_empty(listing, scan_paths)
    listing.groups = _with_earlier_paths(listing.groups, kept)
    before = partial or Kept()
    records = {} if force else dict(kept.records)
    records.update(before.records)
    # A file that cannot be read, or changes all the time, is tried once per scan; otherwise a scan might never end.
    tried = before.tried("groups")
    parts: dict[str, list[dict[str, Any]]] = {"models": [], "companions": [], "rejected": list(listing.rejected)}
    pending = _take_unchanged(listing.groups, records, tried, parts)
    outcome = _read(pending, workers, deadline) if pending else pool.PoolResult({}, [])
    # A forced scan computes checksums again; otherwise they are valid while the file is unchanged.
    sums = {} if force and checksums else _known_sums(kept)
    for part, record in (entry for result in outcome.results.values() for entry in result.items()):
        parts[part].append(_with_sums(record, sums))
    for index in outcome.lost:
        parts["rejected"].append({"path": pending[index][0].path, "reason": "the process that read it died"})
    done = len(listing.groups) - len(pending) + len(outcome.results) + len(outcome.lost)
    hashed = None
    unread = before.tried("checksums")
    if checksums and done == len(listing.groups):
        records_of_files = [*parts["models"], *parts["companions"]]
        from .checksums import add_checksums

        hashed = add_checksums(records_of_files, unread, deadline=deadline, workers=workers)
    tried |= {pending[index][0].path for index in (*outcome.results, *outcome.lost)}
    unfit = _pair(parts, listing.shared)
    aliases = {files[0].path: files[0].alias for files in listing.groups if files[0].alias}
    content = _content(scan_paths, parts, kept, now, aliases)
    return Scan(
        content,
        [*listing.warnings, *unfit],
        changes_between(kept.content, content),
        done,
        len(listing.groups),
        len(outcome.results),
        hashed,
        {"groups": sorted(tried), "checksums": sorted(unread)},
    )


def _with_sums(record: dict[str, Any], sums: Mapping[tuple[str, ...], tuple[Any, Any]]) -> dict[str, Any]:
    """The record with its checksums where these were computed for the same content."""
    known, digests = sums.get(tuple(record.get("files", ())), (None, None))
    if digests and known is not None and known == content_keys(record.get("fingerprint") or {}):
        return {**record, "sha256": digests}
    return record


def _refuse_empty(listing: Listing, scan_paths: Sequence[str]) -> None:
    """Raise RegistryError if no folder has a GGUF file."""
    if listing.groups or any(record["path"].lower().endswith(".gguf") for record in listing.rejected):
        return
    looked = ", ".join(printable(path) for path in scan_paths)
    refused = "".join(f" {record['path']}: {record['reason']}." for record in listing.rejected[:5])
    raise RegistryError(
        f"There is no GGUF file in {looked} or below.{refused} Put *.gguf files there, or change scan_paths."
    )


def _take_unchanged(
    groups: Sequence[tuple[SourceFile, ...]],
    records: Mapping[tuple[str, ...], tuple[str, dict[str, Any]]],
    tried: Container[str],
    parts: Mapping[str, list[dict[str, Any]]],
) -> list[tuple[SourceFile, ...]]:
    """Add the records of files that have not changed, or were tried before, to their parts; return the other files."""
    pending = []
    for files in groups:
        part, record = records.get(tuple(file.path for file in files), ("", {}))
        is_same = bool(part) and record.get("alias", "") == files[0].alias
        if is_same and files[0].path not in tried:
            is_same = content_keys(record["fingerprint"]) == content_keys(fingerprint_of(files))
        if is_same:
            parts[part].append(dict(record))
        else:
            pending.append(files)
    return pending


def _with_earlier_paths(groups: Sequence[tuple[SourceFile, ...]], kept: Kept) -> list[tuple[SourceFile, ...]]:
    """The groups, under the paths of the last scan where these lead to the same blobs of Hugging Face's cache."""
    known = {stable_path(path): path for files in kept.records for path in files if "/snapshots/" in path}
    if not known:
        return list(groups)
    found = []
    for files in groups:
        earlier = tuple(file._replace(path=earlier_path(file.path, known)) for file in files)
        # All shards of one snapshot, or none.
        is_one = len({os.path.dirname(file.path) for file in earlier}) == 1
        found.append(earlier if is_one else files)
    return found


def _pair(parts: Mapping[str, list[dict[str, Any]]], shared: Mapping[str, Sequence[str]]) -> list[str]:
    """Pair models with projectors; one is also a companion in each other folder that has a link to it."""
    companions = parts["companions"]
    for record in list(companions):
        folders = {os.path.dirname(record["path"])}
        for path in shared.get(record["path"], ()) if record["kind"] == "mmproj" else ():
            if os.path.dirname(path) not in folders:
                folders.add(os.path.dirname(path))
                companions.append({**record, "path": path, "files": [path]})
    return pair_projectors(parts["models"], companions)


def _read(pending: Sequence[tuple[SourceFile, ...]], workers: int | None, deadline: float | None) -> pool.PoolResult:
    # Imported here: most scans find nothing new, and each module call compiles its imports.
    from .read_files import read_group

    return pool.run(len(pending), lambda index: read_group(pending[index]), workers=workers, deadline=deadline)


def _known_sums(kept: Kept) -> dict[tuple[str, ...], tuple[list[tuple[int, int, int]] | None, list[str | None]]]:
    """Return the fingerprint and checksums of completely read files, by any reader version."""
    content = kept.content or {}
    return {
        tuple(record["files"]): (content_keys(record["fingerprint"]), record["sha256"])
        for record in (*content.get("models", ()), *content.get("companions", ()))
        if isinstance(record.get("sha256"), list)
    }


def _content(
    scan_paths: Sequence[str],
    parts: Mapping[str, list[dict[str, Any]]],
    kept: Kept,
    now: float | None,
    aliases: Mapping[str, str],
) -> dict[str, Any]:
    models = parts["models"]
    known = kept.ids
    paths = {model["path"] for model in models}
    # A broken file keeps its id, for when it is repaired.
    broken = [record["path"] for record in parts["rejected"] if record["path"] in known]
    ids = assign_ids((*paths, *broken), known, aliases)
    for model in models:
        model["id"] = ids[model["path"]]
    taken = {ids[path] for path in paths}
    old_ids = {path: name for path, name in known.items() if path not in paths and name not in taken}
    models.sort(key=lambda model: str(model["id"]))
    content = REGISTRY.stamp(
        {
            "reader_version": READER_VERSION,
            "scan_paths": list(scan_paths),
            "updated_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "total": len(models),
            "ids": dict(list(old_ids.items())[-MAX_OLD_IDS:]),
            "models": models,
            "companions": sorted(parts["companions"], key=lambda record: str(record["path"])),
            "rejected": sorted(parts["rejected"], key=lambda record: (str(record["path"]), str(record["reason"]))),
        }
    )
    # A different time or collection version alone does not change the registry.
    old = kept.content or {}
    same: dict[str, Any] = {key: old[key] for key in ("updated_at", "collection_version") if key in old}
    return {**content, **same} if old == {**content, **same} else content
