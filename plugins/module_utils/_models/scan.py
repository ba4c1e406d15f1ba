# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The registry of a host's models: finding GGUF files, reading those that are new or changed, keeping the result."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .._core import pool
from .._core.text import printable
from .names import assign_ids, split_name
from .projectors import pair_projectors
from .registry_file import (
    READER_VERSION,
    REGISTRY,
    Kept,
    RegistryError,
    changes_between,
    encode,
    is_within,
)
from .source_files import SourceFile, fingerprint_of
from .stores import chosen_snapshot, earlier_path, is_skipped, stable_path, unfinished

if TYPE_CHECKING:
    from .checksums import Progress

# Of so many paths that hold no model now their last id is remembered.
MAX_OLD_IDS = 2000

# Characters that a path in a unit file, a log line or a table does not survive, and bytes that are not UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f'\"`\\\\\u2028\u2029\ud800-\udfff]")


# --- finding files ---------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """Groups of files that make one model or companion (one file, or all its shards), and what was refused unread."""

    groups: list[tuple[SourceFile, ...]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def reject(self, path: str, reason: str) -> None:
        self.rejected.append({"path": printable(path), "reason": reason})


class _Entry(NamedTuple):
    file: SourceFile
    real: str
    is_link: bool


def _decode(path: bytes) -> str:
    # Not os.fsdecode: names on disk are UTF-8, independent of the connecting user's locale.
    return path.decode("utf-8", "surrogateescape")


def normal_paths(scan_paths: Sequence[str]) -> list[str]:
    """The folders as the paths below them begin: absolute, without `..` and doubled slashes, each once."""
    absolute = (os.path.abspath(encode(path)) for path in scan_paths)
    return list(dict.fromkeys(_decode(b"/" + path.lstrip(b"/")) for path in absolute))


def list_files(scan_paths: Sequence[str], *, follow_links: bool = False) -> Listing:
    """Every *.gguf below the folders, grouped. Raises RegistryError if no folder can be searched."""
    listing = Listing()
    roots = []
    for path in normal_paths(scan_paths):
        absolute = encode(path)
        if os.path.isdir(absolute):
            roots.append(absolute)
        else:
            what = "is not a folder" if os.path.lexists(absolute) else "does not exist"
            listing.warnings.append(f"The scan path {printable(path)} {what}.")
    if not roots:
        looked = ", ".join(printable(path) for path in scan_paths) or "nowhere"
        raise RegistryError(
            f"There is no folder to scan (looked at: {looked}). Create it, or set scan_paths (the role's "
            "registry_scan_paths, or MODEL_SCAN_PATH) to where the models are."
        )
    # A folder's own name comes before a link to it, so that the paths do not depend on the order of the scan paths.
    roots.sort(key=lambda root: (os.path.realpath(root) != root, root))
    entries = _walk(roots, listing, follow_links)
    listing.groups = _group(entries, listing)
    listing.rejected.sort(key=lambda record: str(record["path"]))
    return listing


def _walk(roots: Sequence[bytes], listing: Listing, follow_links: bool) -> list[_Entry]:
    real_roots = [os.path.realpath(root) for root in roots]
    entries: list[_Entry] = []
    seen: set[tuple[int, int]] = set()
    pending = [(root, real, root, False) for root, real in zip(reversed(roots), reversed(real_roots))]
    while pending:
        folder, real_folder, root, linked = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as iterator:
                # In order, so that of two links to one folder always the same one counts.
                found = sorted(iterator, key=lambda item: item.name, reverse=True)
            names = [item.name for item in found]
            snapshot = chosen_snapshot(folder, names)
            downloads = unfinished(names)
        except OSError as error:
            if error.errno != errno.ENOENT:
                listing.reject(_decode(folder), f"the folder cannot be searched: {error.strerror}")
            continue
        for item in found:
            path = os.path.join(folder, item.name)
            real = os.path.join(real_folder, item.name)
            is_gguf = item.name[-5:].lower() == b".gguf"
            is_link = False
            try:
                # Some file systems return an entry's kind only in a second call, which may fail.
                is_link = item.is_symlink()
                if not is_link and item.is_dir(follow_symlinks=False):
                    if not is_skipped(item.name) and (snapshot is None or item.name == snapshot):
                        pending.append((path, real, root, linked))
                    continue
                if not is_gguf and not is_link:
                    continue
                status = os.stat(path)
            except OSError as error:
                # A file that was removed between listing and looking is ignored; a dangling link is reported.
                if is_gguf and (is_link or error.errno != errno.ENOENT):
                    listing.reject(_decode(path), f"cannot be opened: {error.strerror}")
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            if not is_folder and not is_gguf:
                continue
            if is_link:
                real = os.path.realpath(path)
                inside = is_within(real, real_roots)
                if is_folder and inside:
                    continue  # its files are found under their own name
                if not inside and not follow_links:
                    listing.reject(
                        _decode(path),
                        f"a symlink to {printable(_decode(real))}, which is outside the scanned folders: "
                        "scan that folder too, or set follow_links",
                    )
                    continue
                if is_folder:
                    pending.append((path, real, root, True))
                    continue
            reason = _unfit(path[len(root) :])
            if item.name in downloads and not reason:
                reason = f"a download in progress: {_decode(downloads[item.name])} is next to it"
            if reason:
                listing.reject(_decode(path), reason)
                continue
            source = SourceFile(_decode(path), status.st_size, status.st_mtime_ns, status.st_ino)
            entries.append(_Entry(source, _decode(real), is_link or linked))
    return entries


def _unfit(path: bytes) -> str | None:
    """Why no launch config could name this path."""
    text = _decode(path)
    if _UNFIT.search(text):
        return "its path has a control character, quote, backslash or byte that is not UTF-8: rename it"
    if "/-" in text:
        return "a name in its path begins with a dash: rename it"
    return None


def _group(entries: Sequence[_Entry], listing: Listing) -> list[tuple[SourceFile, ...]]:
    """Shards together, in order; aliases of the same files dropped."""
    singles: list[list[_Entry]] = []
    shards: dict[tuple[str, str, int], dict[int, _Entry]] = {}
    for entry in entries:
        folder, name = os.path.split(entry.file.path)
        shard = split_name(name)
        if shard:
            shards.setdefault((folder, shard.stem, shard.total), {})[shard.number] = entry
        else:
            singles.append([entry])
    groups = singles
    for (folder, stem, total), numbered in shards.items():
        missing = total - sum(1 <= number <= total for number in numbered)
        first = os.path.join(folder, f"{stem}-{1:05}-of-{total:05}.gguf")
        extra = sorted(number for number in numbered if not 1 <= number <= total)
        if missing > 0:
            absent = (number for number in range(1, total + 1) if number not in numbered)
            names = ", ".join(f"{stem}-{number:05}-of-{total:05}.gguf" for number in itertools.islice(absent, 3))
            more = f" and {missing - 3} more" if missing > 3 else ""
            there = numbered[min(numbered)].file.path
            reason = f"{missing} of {total} shards missing: {names}{more}"
            files = [numbered[number].file.path for number in sorted(numbered)]
            listing.rejected.append({"path": first if 1 in numbered else there, "reason": reason, "files": files})
        elif extra:
            listing.reject(numbered[extra[0]].file.path, f"its name says shard {extra[0]} of {total}")
        else:
            groups.append([numbered[number] for number in range(1, total + 1)])

    def order(group: list[_Entry]) -> tuple[bool, int, str]:
        path = group[0].file.path
        return any(entry.is_link for entry in group), path.count("/"), path

    groups.sort(key=order)
    # A link to a file that is there under its own name, and a second link to the same file, are not further models.
    unique: dict[tuple[str, ...], list[_Entry]] = {}
    for group in groups:
        unique.setdefault(tuple(entry.real for entry in group), group)
    return [tuple(entry.file for entry in group) for group in unique.values()]


# --- reading files ---------------------------------------------------------------------------------------------------


# --- scanning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What a scan found. complete is False where the time limit came first: done of total groups are known then.

    checksums is their progress, if they were asked for and all headers are read.
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
        """What to save for the next slice of the scan that calls itself so."""
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
    """Scan the folders, reading only what is not in kept (unless forced) or in the partial result of a scan before.

    Stops reading after time_limit seconds, or after as long as the search took where that is longer: the next slice has
    to search again. Raises RegistryError where no folder can be searched or no GGUF file is in any.
    """
    scan_paths = normal_paths(scan_paths)
    started = time.monotonic()
    listing = list_files(scan_paths, follow_links=follow_links)
    found = time.monotonic()
    deadline = None if time_limit is None else found + (time_limit and max(time_limit, found - started))
    if not listing.groups and not any(record["path"].lower().endswith(".gguf") for record in listing.rejected):
        looked = ", ".join(printable(path) for path in scan_paths)
        refused = "".join(f" {record['path']}: {record['reason']}." for record in listing.rejected[:5])
        raise RegistryError(
            f"There is no GGUF file in {looked} or below.{refused} Put *.gguf files there, or change scan_paths."
        )
    listing.groups = _with_earlier_paths(listing.groups, kept)
    before = partial or Kept()
    records = {} if force else dict(kept.records)
    records.update(before.records)
    # A file that cannot be read, or is written to all the time, is dealt with once in a scan, or it would never end.
    tried = before.tried("groups")
    parts: dict[str, list[dict[str, Any]]] = {"models": [], "companions": [], "rejected": list(listing.rejected)}
    pending = []
    for files in listing.groups:
        part, record = records.get(tuple(file.path for file in files), ("", {}))
        if part and (files[0].path in tried or record["fingerprint"] == fingerprint_of(files)):
            parts[part].append(dict(record))
        else:
            pending.append(files)
    outcome = _read(pending, workers, deadline) if pending else pool.PoolResult({}, [])
    # A forced scan computes checksums again; otherwise they are valid while the file is unchanged.
    sums = {} if force and checksums else _known_sums(kept)
    for result in outcome.results.values():
        for part, record in result.items():
            known, digests = sums.get(tuple(record.get("files", ())), (None, None))
            if digests and known == record.get("fingerprint"):
                record["sha256"] = digests
            parts[part].append(record)
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
    unfit = pair_projectors(parts["models"], parts["companions"])
    content = _content(scan_paths, parts, kept, now)
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


def _read(pending: Sequence[tuple[SourceFile, ...]], workers: int | None, deadline: float | None) -> pool.PoolResult:
    # Most scans find nothing new, and a module compiles at every call what it imports.
    from .read_files import read_group

    return pool.run(len(pending), lambda index: read_group(pending[index]), workers=workers, deadline=deadline)


def _known_sums(kept: Kept) -> dict[tuple[str, ...], tuple[dict[str, Any], list[str | None]]]:
    """The fingerprint and checksums of files that were read completely, by any version of the reader."""
    content = kept.content or {}
    return {
        tuple(record["files"]): (record["fingerprint"], record["sha256"])
        for record in (*content.get("models", ()), *content.get("companions", ()))
        if isinstance(record.get("sha256"), list)
    }


def _content(
    scan_paths: Sequence[str], parts: Mapping[str, list[dict[str, Any]]], kept: Kept, now: float | None
) -> dict[str, Any]:
    models = parts["models"]
    known = kept.ids
    paths = {model["path"] for model in models}
    # A file that is broken today keeps its name for the day when it is whole.
    broken = [record["path"] for record in parts["rejected"] if record["path"] in known]
    ids = assign_ids((*paths, *broken), known)
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
    # Neither the time nor another version of the collection alone makes another registry.
    old = kept.content or {}
    same: dict[str, Any] = {key: old[key] for key in ("updated_at", "collection_version") if key in old}
    return {**content, **same} if old == {**content, **same} else content
