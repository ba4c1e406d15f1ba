# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which files of a server its unit's sandbox would hide, by where their paths lead; read on the host.

A unit has empty homes and temporary folders of its own, in which only these files are shown.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.argv import WRITE_FLAGS, flag_values, shards
from .._core.links import is_below, stages

HOMES = ("/home", "/root", "/run/user")
TEMPORARY = ("/tmp", "/var/tmp")
# Folders with a folder for each user: one of these has everything of that user.
USERS = ("/home", "/run/user")
# A unit cannot enter it: llama-server would obey the settings there.
CLOSED = ("/etc/llama.cpp",)
# Where systemd puts what it hands over with LoadCredential.
CREDENTIALS = "/run/credentials"
# The two parts of the sandbox that a unit goes without where a path cannot be shown in it.
HOME, TMP = "homes", "temporary folders"
MAX_SHOWN = 5
# systemd does not start a program with one of these in its path.
_UNSTARTABLE = re.compile(r"[\"'\\$\x00-\x1f\x7f\udc80-\udcff]")
# Two paths in a unit's setting are divided by a colon, and quotes in them are not read alike by all versions.
_AWKWARD = re.compile(r"[:\"'\\\x00-\x1f\x7f\udc80-\udcff]")
_SCALE = re.compile(r":[0-9.]+$")


@dataclass
class _Shown:
    """What is shown: the source of each path, those that are writable, the parts left out, all folders passed.

    program is what a link leads to that is not shown.
    """

    hidden: Mapping[str, Sequence[str]]
    sources: dict[str, str] = field(default_factory=dict)
    writable: set[str] = field(default_factory=set)
    opens: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    program: str | None = None

    def part(self, path: str) -> str | None:
        """The part of the sandbox that hides a path."""
        return next((part for part, folders in self.hidden.items() if is_below(path, folders)), None)

    def bind(self, path: str, writable: bool = False) -> None:
        """Show what is at a path, which is hidden."""
        source = os.path.realpath(path)
        part = self.part(path)
        if part and (path in self.hidden[part] or _AWKWARD.search(path + source)):
            self.opens.add(part)
            return
        self.sources[path] = source
        if writable:
            self.writable.add(path)

    def add_file(self, path: str, writable: bool = False) -> None:
        """Show a file or a folder where the way to it enters what is hidden; from there its links are not needed."""
        passed = stages(path)
        self._note(passed)
        if writable or os.path.isdir(passed[-1]):
            # A disk may be mounted on it.
            self.folders.update(passed)
        entered = next((stage for stage in passed if self.part(stage)), None)
        if entered:
            self.bind(entered, writable)

    def add_program(self, path: str, is_library: bool = False) -> None:
        """Show the folders on the way to a program or a library: it finds its other files by its own path.

        A program in a folder bin is shown with the folder above that one.
        """
        passed = stages(path)
        # What is below the prefix changes with each release, and no disk is mounted in there.
        own = [os.path.dirname(os.path.dirname(passed[0]))]
        self._note(stage for stage in passed if stage == passed[0] or not is_below(stage, own))
        for stage in passed:
            if not self.part(stage):
                continue
            folder = os.path.dirname(stage)
            above = os.path.dirname(folder)
            if not self._is_wide(folder):
                prefix = not is_library and os.path.basename(folder) == "bin" and not self._is_wide(above)
                self.bind(above if prefix else folder)
            elif stage == passed[-1]:
                # Of a user's own folder, only the program and the libraries next to it.
                for file in [stage, *sorted(glob.glob(f"{glob.escape(folder)}/lib*.so*"))]:
                    self.bind(file)
            elif is_library:
                self.bind(stage)
            elif _UNSTARTABLE.search(passed[-1]):
                self.opens.update(part for part in [self.part(stage)] if part)
            else:
                # A link in a user's own folder. A unit can show a file at its path, but no link: the program would look
                # for its libraries there.
                self.program = passed[-1]

    def _is_wide(self, folder: str) -> bool:
        """Whether a folder has much more than a program."""
        users = [*USERS, *(os.path.realpath(path) for path in USERS)]
        return any(folder in folders for folders in self.hidden.values()) or os.path.dirname(folder) in users

    def _note(self, passed: Iterable[str]) -> None:
        self.folders.update(os.path.dirname(stage) for stage in passed)
        self.closed.update(stage for stage in passed if is_below(stage, CLOSED))


def shown_files(argv: Sequence[str], loaded: Sequence[str]) -> dict[str, Any]:
    """Return what a unit's sandbox must show to a server with this command line; loaded are its libraries' paths.

    "shows" are paths with their source, and whether the server writes there. "opens" names parts of the sandbox that
    the unit has to go without. "folders" are all folders on the way, "closed" the paths that no unit can show.
    "program" is what to start where the program is a link that is not shown. What is empty is left out.
    """
    shown = _Shown({part: _with_real(folders) for part, folders in ((HOME, HOMES), (TMP, TEMPORARY))})
    writes = set(flag_values(argv, WRITE_FLAGS))
    for word in argv[1:]:
        for path in files_of(word, word in writes):
            shown.add_file(path, word in writes)
    shown.add_program(argv[0])
    for path in loaded:
        if any(shown.part(stage) for stage in stages(path)):
            shown.add_program(path, is_library=True)
    found: dict[str, Any] = {
        "shows": [
            {"path": path, "source": source, "writable": path in shown.writable}
            for path, source in sorted(shown.sources.items())
            if not _is_shown_by_folder(path, shown)
        ],
        "opens": sorted(shown.opens),
        "folders": sorted(folder for folder in shown.folders if not is_below(folder, ("/usr",)) and folder != "/"),
        "closed": sorted(shown.closed),
        "program": shown.program,
    }
    return {key: value for key, value in found.items() if value}


def _with_real(folders: Iterable[str]) -> list[str]:
    """Return folders and where they are: on some hosts /home is a link."""
    return list(dict.fromkeys(path for folder in folders for path in (folder, os.path.realpath(folder))))


def files_of(word: str, is_written: bool) -> list[str]:
    """Return the files that a word of a command line names, with all shards; none if there is no such file."""
    # systemd makes a credential's file when it starts the server.
    if not word.startswith("/") or is_below(word, [CREDENTIALS]):
        return []
    if is_written or os.path.exists(word):
        return [word, *(name for name in shards(word) if name != word and os.path.exists(name))]
    parts = [_SCALE.sub("", part) for part in word.split(",")]
    return [part for part in parts if part.startswith("/") and os.path.exists(part)]


def _is_shown_by_folder(path: str, shown: _Shown) -> bool:
    """Whether another path that is shown has this one in it, as the same file."""
    for folder, source in shown.sources.items():
        may = path not in shown.writable or folder in shown.writable
        if may and folder != path and is_below(path, [folder]) and shown.sources[path] == source + path[len(folder) :]:
            return True
    return False


def sandbox_warnings(servers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return warnings about files that the sandbox of a server cannot show, or only by being left open."""
    warnings = []
    for server in servers:
        sandbox = server.get("sandbox") or {}
        for path in sandbox.get("closed", []):
            warnings.append(
                f"{server['name']}: {path} is in {CLOSED[0]}, which units may not enter, as llama-server would obey "
                "config.ini there. Move the file to another folder."
            )
        if sandbox.get("opens"):
            warnings.append(
                f"{server['name']}: its unit does not hide the host's {' and '.join(sandbox['opens'])}, because a file "
                "of it is directly in one or has a colon, quote, backslash or dollar sign in its path. Move or rename "
                "the file."
            )
    return warnings


def shown_text(server: Mapping[str, Any]) -> str | None:
    """Return what the sandbox of a server shows of homes and temporary folders; None if nothing."""
    shows = (server.get("sandbox") or {}).get("shows", [])
    texts = [
        show["path"] + (f" (which is {show['source']})" if show["source"] != show["path"] else "") for show in shows
    ]
    more = f" and {len(texts) - MAX_SHOWN} more" if len(texts) > MAX_SHOWN else ""
    return f"its sandbox shows {', '.join(texts[:MAX_SHOWN])}{more}" if texts else None
