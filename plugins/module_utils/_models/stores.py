# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Folders that other tools fill: what in them is not a model to serve, and which of several versions counts.

Hugging Face's cache keeps each repository as models--OWNER--NAME with blobs, refs and a snapshot for each revision,
whose files are links to the blobs. Plain folders of versions have a link to the one that counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

# Folders with deleted files, copies or a file system's own data.
_SKIPPED_FOLDERS = re.compile(
    rb"lost\+found|\.Trash(-\d+)?|\.Trashes|#recycle|#snapshot|@eaDir|@Recycle|\.snapshots?|\.zfs", re.IGNORECASE
)
# Endings of downloaders' control files. The file of the same name without it is incomplete, even at full length.
_UNFINISHED = (b".aria2", b".st", b".part", b".crdownload", b".incomplete", b".!qB")

_REPOSITORY = re.compile(rb"models--.+")
_REVISION = re.compile(rb"[0-9a-f]{7,64}")
_IN_SNAPSHOT = re.compile(r"(/models--[^/]+/snapshots/)[^/]+/")
# Links to the version that counts, best first, and names of versions.
_CURRENT = (b"current", b"latest")
_VERSION = re.compile(rb"v?\d+([._-]\d+)*([._+-]?(a|b|rc|alpha|beta|dev|post|r)\d*)?|[0-9a-f]{7,64}", re.IGNORECASE)
# A revision is 40 letters; a longer file is not a ref.
_MAX_REF_BYTES = 128


def is_skipped(folder: bytes) -> bool:
    """Whether a folder of this name holds no models to serve."""
    return _SKIPPED_FOLDERS.fullmatch(folder) is not None


def unfinished(names: Iterable[bytes]) -> dict[bytes, bytes]:
    """The files of a folder that are still being downloaded, each with the downloader's control file next to it."""
    return {name.rpartition(b".")[0]: name for name in names if name.endswith(_UNFINISHED)}


def chosen_snapshot(folder: bytes, names: Iterable[bytes]) -> bytes | None:
    """The one revision that counts in a snapshots folder of Hugging Face's cache; None if it is another folder.

    It is that of refs/main, if it is there, else the newest.
    """
    if not folder.endswith(b"/snapshots"):
        return None
    repository = os.path.dirname(folder)
    if not _REPOSITORY.fullmatch(os.path.basename(repository)):
        return None
    revisions = [name for name in names if _REVISION.fullmatch(name)]
    main = _ref(os.path.join(repository, b"refs", b"main"))
    if main in revisions:
        return main
    return max(revisions, key=lambda name: (_modified(os.path.join(folder, name)), name), default=None)


def current_version(folder: bytes, names: Collection[bytes]) -> tuple[bytes, bytes] | None:
    """The link to the one version that counts in a folder of versions, and its target; None if it is another folder.

    Such a folder has versions (v1, 2.0, 2026-11-27) next to each other, and a link current or latest to one of them.
    Files are found below the link, so that their paths stay the same when it leads to another version.
    """
    for link in _CURRENT:
        if link in names:
            path = os.path.join(folder, link)
            target = os.path.basename(os.path.realpath(path))
            if os.path.islink(path) and target in names and is_version(target) and _is_same(path, folder, target):
                return link, target
    return None


def is_version(name: bytes) -> bool:
    """Whether a folder of this name is a version where another one is known to be."""
    return _VERSION.fullmatch(name) is not None


def _is_same(path: bytes, folder: bytes, name: bytes) -> bool:
    return os.path.isdir(path) and os.path.realpath(path) == os.path.join(os.path.realpath(folder), name)


def stable_path(path: str) -> str:
    """The path without the revision of Hugging Face's cache: the same for the same file of a repository."""
    return path if "/snapshots/" not in path else _IN_SNAPSHOT.sub(r"\1*/", path)


def earlier_path(path: str, known: Mapping[str, str]) -> str:
    """The path in an earlier snapshot if it leads to the same blob: so that a commit to a README restarts no server.

    known maps stable paths to those of the last scan.
    """
    before = known.get(stable_path(path), path)
    if before == path or os.path.realpath(_encoded(before)) != os.path.realpath(_encoded(path)):
        return path
    return before if os.path.exists(_encoded(before)) else path


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _ref(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_REF_BYTES).strip()
    except OSError:
        return None


def _modified(path: bytes) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
