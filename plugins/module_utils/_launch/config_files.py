# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Launch configs: compare them with the files on disk, find stale ones, and write a set of files all or none."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .._core.errors import MagiError
from .._core.files import Temporary, discard, make_folders, remove_leftovers, sync_folder, write_temporary


class LaunchConfigError(MagiError):
    """Raised if launch configs could not be written; the old ones are unchanged."""


@dataclass(frozen=True)
class File:
    """A file as it should be. owner is (uid, gid), by default the caller's; it does not make files differ."""

    path: str
    content: bytes
    mode: int = 0o644
    owner: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Managed:
    """Our files: those in folder whose name matches the pattern and whose content contains the marker."""

    folder: str
    pattern: str
    marker: str


def files_to_write(files: Sequence[File]) -> list[File]:
    """Return the files that differ from those on disk."""
    return [file for file in files if file_at(file.path) != file]


def digest(file: File) -> str:
    """Return a digest that changes with a file's content or mode."""
    return hashlib.sha256(b"%o\n%b" % (file.mode, file.content)).hexdigest()


def changed_files(recorded: Mapping[str, str]) -> dict[str, str]:
    """What happened to files since their digests were recorded, by path: "edited" or "removed".

    A file that this user cannot read is left out.
    """
    found = {}
    for path, before in recorded.items():
        try:
            if digest(read_file(path)) != before:
                found[path] = "edited"
        except FileNotFoundError:
            found[path] = "removed"
        except OSError:
            continue
    return found


def read_file(path: str) -> File:
    """Return a file as it is on disk. Raises OSError."""
    with open(path, "rb") as stream:
        return File(path, stream.read(), os.fstat(stream.fileno()).st_mode & 0o7777)


def file_at(path: str) -> File | None:
    try:
        return read_file(path)
    except OSError:
        return None


def current_text(path: str) -> str:
    """Return a file's text for a diff; empty if it does not exist."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def stale_files(managed: Sequence[Managed], keep: Sequence[str]) -> list[str]:
    """Return the paths of our files that are not in keep."""
    found = []
    for entry in managed:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(entry.folder)):
                path = os.path.join(entry.folder, name)
                if (
                    fnmatch.fnmatchcase(name, entry.pattern)
                    and path not in keep
                    and os.path.isfile(path)
                    and entry.marker in current_text(path)
                ):
                    found.append(path)
    return found


def refuse_foreign(files: Sequence[File], managed: Sequence[Managed]) -> None:
    """Raise LaunchConfigError if a file would overwrite one that is not ours."""
    for file in files:
        folder, name = os.path.split(file.path)
        for entry in managed:
            if folder != entry.folder or not fnmatch.fnmatchcase(name, entry.pattern) or not os.path.lexists(file.path):
                continue
            if entry.marker not in current_text(file.path):
                raise LaunchConfigError(
                    f"{file.path} already exists and is not managed by this deployment. Nothing was changed. Rename "
                    "the model file (server names derive from it) or the other unit."
                )


def write_all(files: Sequence[File], remove: Sequence[str] = ()) -> None:
    """Write the files, then remove others; if one cannot be written, none is.

    Raises LaunchConfigError.
    """
    staged: list[tuple[Temporary, File]] = []
    path = ""
    try:
        for folder in sorted({os.path.dirname(file.path) for file in files}):
            path = folder
            make_folders(folder)
            remove_leftovers(folder)
        for file in files:
            path = file.path
            staged.append((write_temporary(path, file.content, file.mode, file.owner), file))
        for temporary, file in staged:
            path = file.path
            os.replace(temporary.path, path)
        for path in remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for folder in sorted({os.path.dirname(path) for path in [*(file.path for file in files), *remove]}):
            sync_folder(folder)
    except OSError as error:
        raise LaunchConfigError(
            f"{path} could not be written: {error.strerror}. Nothing was started or stopped; free disk space or fix "
            "the permissions and run again."
        ) from error
    finally:
        for temporary, _file in staged:
            discard(temporary)
