# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What is ours, and what root may trust.

A folder is ours by its mark, which is written as soon as the folder exists. Root trusts a path that no one else can
change: it and every folder above it, and every link on the way and what it leads to, belong to root and are not
writable for group or others. A sticky folder of root's, such as /tmp, may be above it: others cannot rename in it what
is root's.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from .errors import MagiError

# The manifest of a folder that is made, replaced and removed as a whole, such as llama-server's prefix.
MANIFEST = "manifest.json"
MARK = {"managed_by": "magi.llama"}
MANIFEST_LIMIT_BYTES = 4 << 20
LINK_LIMIT = 40


class OwnershipError(MagiError):
    """Something on the host that is not ours, or that root must not trust. Nothing was changed."""


def open_trusted(path: str) -> BinaryIO:
    """Open a file for reading, as root only where no one else can change it. Raises OSError, OwnershipError."""
    require_trusted(path)
    # Names on disk are UTF-8, independent of the connecting user's locale.
    return open(path.encode("utf-8", "surrogateescape"), "rb")


def require_trusted(path: str, owner: str | None = None) -> None:
    """Raise OwnershipError, naming the file or folder, where root must not trust a path. Others than root may read all.

    Of a path that does not exist the folders are checked. owner is the name of a user who is trusted like root.
    """
    if os.geteuid() != 0:
        return
    trusted = {0, *_uid(owner)}
    for entry, status in _way_to(os.path.join(os.getcwd(), path)):
        if entry == "/":
            # Its owner can replace everything; in a user namespace that is not always uid 0.
            trusted.add(status.st_uid)
        fault = _fault(status, trusted)
        if fault:
            leads = "" if entry == path else f", and leads to {path}"
            raise OwnershipError(
                f"{entry} {fault}{leads}: root does not use it, as others could change it. Nothing was changed. Give "
                f"it to root (chown root {entry}; chmod go-w {entry}), choose another place, or run without root."
            )


def is_trusted(path: str) -> bool:
    """Whether root may trust an absolute path; without root every one."""
    try:
        require_trusted(path)
    except OwnershipError:
        return False
    return path.startswith("/")


def _uid(name: str | None) -> list[int]:
    import pwd

    try:
        return [pwd.getpwnam(name).pw_uid] if name else []
    except KeyError:
        raise OwnershipError(f"There is no user {name} on this host.") from None


def _way_to(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every folder and link on the way to a path, as the system takes it, and what is there, with their status."""
    at, links = "/", 0
    pending = path.split("/")[::-1]
    yield at, os.lstat(at)
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            # The folder is not a link: these were followed.
            at = os.path.dirname(at)
            continue
        entry = os.path.join(at, name)
        try:
            status = os.lstat(entry.encode("utf-8", "surrogateescape"))
            target = os.readlink(entry) if stat.S_ISLNK(status.st_mode) else None
        except OSError:
            return
        yield entry, status
        if target is None:
            at = entry
            continue
        links += 1
        if links > LINK_LIMIT:
            return
        at = "/" if target.startswith("/") else at
        pending += target.split("/")[::-1]


def _fault(status: os.stat_result, trusted: set[int]) -> str | None:
    mode = status.st_mode
    if status.st_uid not in trusted:
        return f"belongs to {name_of(status.st_uid)}"
    if stat.S_ISLNK(mode) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return None
    writers = [who for bit, who in ((stat.S_IWGRP, "its group"), (stat.S_IWOTH, "others")) if mode & bit]
    return f"is writable for {' and '.join(writers)} (mode {stat.S_IMODE(mode):04o})" if writers else None


def name_of(uid: int) -> str:
    """Return "the user NAME", or the number where no user has it."""
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"


def read_mark(folder: str) -> dict[str, Any]:
    """The manifest of a folder that is ours; empty where it has none."""
    try:
        with open_trusted(os.path.join(folder, MANIFEST)) as stream:
            manifest = json.loads(stream.read(MANIFEST_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError, OwnershipError):
        # What others can write is not ours.
        return {}
    return manifest if isinstance(manifest, dict) and _is_marked(manifest) else {}


def _is_marked(manifest: dict[str, Any]) -> bool:
    # Prefixes of 0.1 have these two keys in place of the mark.
    of_first_version = isinstance(manifest.get("layout"), int) and manifest.get("method") in ("portable", "release")
    return of_first_version or MARK.items() <= manifest.items()


def is_own_folder(folder: str) -> bool:
    """Whether a folder is ours to replace and to remove: it is marked, or empty. A link never is."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return False
    if read_mark(folder):
        return True
    try:
        return not os.listdir(folder)
    except OSError:
        return False


def require_own_folder(folder: str, variable: str) -> None:
    """Raise OwnershipError where something exists at a path that we did not make. variable names the path's setting."""
    if os.path.lexists(folder) and not is_own_folder(folder):
        raise OwnershipError(
            f"{folder} already exists, is not empty and was not made by magi.llama, which replaces and removes the "
            f"whole folder. Nothing was changed. Set {variable} to a folder of its own, or move this one away."
        )
