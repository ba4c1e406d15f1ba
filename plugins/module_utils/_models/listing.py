# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Find model files below the scanned folders and group them into models, without reading them."""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._core.text import printable
from .names import split_name
from .ollama import is_ollama_store, ollama_blobs
from .registry_file import RegistryError, encode, is_within
from .source_files import SourceFile
from .stores import chosen_snapshot, current_version, is_skipped, is_version, unfinished

# Characters that break a unit file, a log line or a table, and bytes that are not UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f'\"`\\\\\u2028\u2029\ud800-\udfff]")


@dataclass
class Listing:
    """Groups of files that form a model or companion (one file, or all shards), and files rejected without reading.

    shared has the paths of single files in other folders that are links to a group's file, by the group's path.
    """

    groups: list[tuple[SourceFile, ...]] = field(default_factory=list)
    shared: dict[str, list[str]] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def reject(self, path: str, reason: str) -> None:
        self.rejected.append({"path": printable(path), "reason": reason})


class _Entry(NamedTuple):
    file: SourceFile
    real: str
    is_link: bool


class _Folder(NamedTuple):
    """A folder of the walk: root is the scanned folder it belongs to; is_linked says if a link led to it."""

    path: bytes
    real: bytes
    root: bytes
    is_linked: bool


def _decode(path: bytes) -> str:
    # Not os.fsdecode: names on disk are UTF-8, independent of the connecting user's locale.
    return path.decode("utf-8", "surrogateescape")


def normal_paths(scan_paths: Sequence[str]) -> list[str]:
    """Return the folders as absolute paths, without `..`, doubled slashes and duplicates."""
    absolute = (os.path.abspath(encode(path)) for path in scan_paths)
    return list(dict.fromkeys(_decode(b"/" + path.lstrip(b"/")) for path in absolute))


def list_files(scan_paths: Sequence[str], *, follow_links: bool = False) -> Listing:
    """Find every model file below the folders, grouped. Raises RegistryError if no folder can be searched."""
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
            "registry_scan_paths, or MODEL_SCAN_PATH) to the folder with the models."
        )
    # A folder's own name comes before a link to it, so that the paths do not depend on the order of the scan paths.
    roots.sort(key=lambda root: (os.path.realpath(root) != root, root))
    entries = _Walk(roots, listing, follow_links).entries()
    listing.groups = _group(entries, listing)
    listing.rejected.sort(key=lambda record: str(record["path"]))
    return listing


class _Walk:
    """The model files below some folders; unusable files are rejected in the listing."""

    def __init__(self, roots: Sequence[bytes], listing: Listing, follow_links: bool) -> None:
        self._listing = listing
        self._follow_links = follow_links
        self._real_roots = [os.path.realpath(root) for root in roots]
        self._pending = [
            _Folder(root, real, root, False) for root, real in zip(reversed(roots), reversed(self._real_roots))
        ]
        self._entries: list[_Entry] = []

    def entries(self) -> list[_Entry]:
        seen: set[tuple[int, int]] = set()
        while self._pending:
            folder = self._pending.pop()
            try:
                status = os.stat(folder.path)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder.path) as iterator:
                    # Sorted, so that of two links to one folder always the same one is used.
                    found = sorted(iterator, key=lambda item: item.name, reverse=True)
                self._search(folder, found)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    self._reject(folder.path, f"the folder cannot be searched: {error.strerror}")
        return self._entries

    def _search(self, folder: _Folder, found: Sequence[os.DirEntry[bytes]]) -> None:
        names = [item.name for item in found]
        snapshot = chosen_snapshot(folder.path, names)
        downloads = unfinished(names)
        if is_ollama_store(names):
            self._store(folder)
        link, version = current_version(folder.path, names) or (None, None)
        for item in found:
            path = os.path.join(folder.path, item.name)
            is_gguf = item.name[-5:].lower() == b".gguf"
            is_link = False
            try:
                # Some file systems return an entry's kind only in a second call, which may fail.
                is_link = item.is_symlink()
                if not is_link and item.is_dir(follow_symlinks=False):
                    is_other = is_version(item.name) if version else snapshot not in (None, item.name)
                    if not is_skipped(item.name) and not is_other:
                        real = os.path.join(folder.real, item.name)
                        self._pending.append(_Folder(path, real, folder.root, folder.is_linked))
                    continue
                if version and item.name == link:
                    real = os.path.join(folder.real, version)
                    self._pending.append(_Folder(path, real, folder.root, folder.is_linked))
                elif is_gguf or is_link:
                    self._file(folder, item.name, is_gguf=is_gguf, is_link=is_link, control=downloads.get(item.name))
            except OSError as error:
                # A file that was removed between listing and looking is ignored; a dangling link is reported.
                if is_gguf and (is_link or error.errno != errno.ENOENT):
                    self._reject(path, f"cannot be opened: {error.strerror}")

    def _store(self, folder: _Folder) -> None:
        """Add the blobs that the manifests of an Ollama store name."""
        blobs, reasons = ollama_blobs(folder.path)
        for path, reason in reasons.items():
            self._reject(path, reason)
        for name, alias in blobs.items():
            path = os.path.join(folder.path, name)
            is_link = os.path.realpath(path) != os.path.join(folder.real, name)
            try:
                self._file(folder, name, is_gguf=True, is_link=is_link, alias=alias)
            except OSError as error:
                self._reject(path, f"cannot be opened: {error.strerror}; Ollama has it as {alias}")

    def _file(
        self,
        folder: _Folder,
        name: bytes,
        *,
        is_gguf: bool,
        is_link: bool,
        control: bytes | None = None,
        alias: str = "",
    ) -> None:
        """Add a file, or what a link leads to. control is a downloader's control file. Raises OSError."""
        path, real = os.path.join(folder.path, name), os.path.join(folder.real, name)
        status = os.stat(path)
        is_folder = stat.S_ISDIR(status.st_mode)
        if not is_folder and not is_gguf:
            return
        if is_link:
            real = os.path.realpath(path)
            inside = is_within(real, self._real_roots)
            if is_folder and inside:
                return  # its files are found under their own path
            if not inside and not self._follow_links:
                self._reject(
                    path,
                    f"a symlink to {printable(_decode(real))}, which is outside the scanned folders: "
                    "scan that folder too, or set follow_links",
                )
                return
            if is_folder:
                self._pending.append(_Folder(path, real, folder.root, True))
                return
        reason = _unfit(path[len(folder.root) :])
        if control and not reason:
            reason = f"a download in progress: {_decode(control)} is next to it"
        if reason:
            self._reject(path, reason)
            return
        source = SourceFile.of(_decode(path), status, alias, _decode(real))
        self._entries.append(_Entry(source, _decode(real), is_link or folder.is_linked))

    def _reject(self, path: bytes, reason: str) -> None:
        self._listing.reject(_decode(path), reason)


def _unfit(path: bytes) -> str | None:
    """Return why a path cannot be used in a launch config; None if it can."""
    text = _decode(path)
    if _UNFIT.search(text):
        return "its path has a control character, quote, backslash or byte that is not UTF-8: rename it"
    if "/-" in text:
        return "a name in its path begins with a dash: rename it"
    return None


def _group(entries: Sequence[_Entry], listing: Listing) -> list[tuple[SourceFile, ...]]:
    """Group shards, in order, and drop links to files that are already listed."""
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
    # A link to a file that is also listed itself, or a second link to it, is not another model. A projector that models
    # of several folders share belongs to each.
    unique: dict[tuple[str, ...], list[_Entry]] = {}
    for group in groups:
        same = unique.setdefault(tuple(entry.real for entry in group), group)
        if same is not group and len(group) == 1:
            listing.shared.setdefault(same[0].file.path, []).append(group[0].file.path)
    return [tuple(entry.file for entry in group) for group in unique.values()]
