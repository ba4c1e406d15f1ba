# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The state of a host that cannot be computed again: which files it is, and how they travel.

Launch configs, observations, llama-server and caches are not among them: a run makes them again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from .._core.documents import Fields
from .._core.errors import MagiError
from .._core.files import read_regular
from .._core.ownership import require_trusted
from .._deployment.record import deployment_path
from .._launch.api_keys import MAX_BYTES as MAX_KEY_BYTES
from .._launch.api_keys import key_file

RECORD = "deployment.json"
REGISTRY = "registry.json"
KEYS = "api-keys"
# The console's, on its host: a backup of its own.
DATABASE = "console.db"
# By name: how large a file may be. No other name is read, taken from a host, stored or written.
MAX_BYTES = {RECORD: 16 << 20, REGISTRY: 64 << 20, KEYS: MAX_KEY_BYTES, DATABASE: 128 << 20}
# How long a database may be locked by another process.
BACKUP_SECONDS = 60
# In the module sqlite3 since Python 3.11.
SQLITE_DONE = 101
MODES = {RECORD: 0o644, REGISTRY: 0o644, KEYS: 0o600}

NAME = re.compile("|".join(map(re.escape, MAX_BYTES)))
DIGEST = re.compile("[0-9a-f]{64}|")
# What a module answers: without files where the digest is the one that the controller knows.
STATE = Fields({"digest": DIGEST}, {"files": [Fields({"name": NAME, "data": str})]})


class StateError(MagiError):
    """State that cannot be read, taken or stored."""


@dataclass(frozen=True)
class StateFile:
    """A file of the state; its path on the host is that of the variables, never one that is stored."""

    name: str
    content: bytes


def places(state_dir: str, registry_path: str | None, api_key_file: str | None) -> dict[str, str]:
    """Where the files are on the host, by name; api_key_file is None where the keys are left alone."""
    keys = key_file(api_key_file, state_dir)
    found = {RECORD: deployment_path(state_dir), REGISTRY: registry_path, KEYS: keys}
    return {name: path for name, path in found.items() if path}


def read_state(paths: Mapping[str, str]) -> list[StateFile]:
    """Return the files that exist; none on a host on which nothing was deployed. Raises StateError."""
    files = [StateFile(name, content) for name, path in paths.items() if (content := _read(name, path)) is not None]
    return files if any(file.name in (RECORD, DATABASE) for file in files) else []


def _read(name: str, path: str) -> bytes | None:
    if name in (RECORD, KEYS):
        # The others may be a user's: they are only read, and no other file can take their place in an archive.
        require_trusted(path)
    if not os.path.lexists(path):
        return None
    content = _database(path) if name == DATABASE else read_regular(path, MAX_BYTES[name] + 1)
    if content is None and name == REGISTRY:
        # A scan writes it again.
        return None
    if content is None:
        raise StateError(
            f"{path} cannot be backed up: it is not a regular file that this user can read. Nothing was changed. Fix "
            "it, or set backup_before_changes and backup_keys to false."
        )
    if len(content) > MAX_BYTES[name]:
        raise StateError(
            f"{path} cannot be backed up: it is larger than {MAX_BYTES[name] >> 20} MiB. Nothing was changed. Set "
            "backup_before_changes to false to continue without a backup."
        )
    return content


def _database(path: str) -> bytes | None:
    """A consistent copy of a database that a console may be writing to; None for what is not a regular file."""
    try:
        import sqlite3
    except ImportError as error:
        raise StateError(f"{path} cannot be backed up: python3 on this host has no module sqlite3.") from error
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="magi-llama-") as folder:
            copy = os.path.join(folder, DATABASE)
            # backup itself tries again, four times a second and without end.
            source = sqlite3.connect(f"file:{quote(path)}?mode=ro", timeout=0, uri=True)
            with closing(source), closing(sqlite3.connect(copy)) as target:
                source.backup(target, progress=_end_of_waiting(path))
            return read_regular(copy, MAX_BYTES[DATABASE] + 1)
    except (sqlite3.Error, OSError) as error:
        raise StateError(f"{path} cannot be backed up: {error}.") from error


def _end_of_waiting(path: str) -> Callable[[int, int, int], None]:
    """What a copy calls after each try; raises StateError where a database is locked for too long."""
    until = time.monotonic() + BACKUP_SECONDS

    def tried(code: int, _remaining: int, _total: int) -> None:
        if code != SQLITE_DONE and time.monotonic() > until:
            raise StateError(
                f"{path} cannot be backed up: another process has locked it for {BACKUP_SECONDS} s. End what has it "
                "open besides the console, and run again."
            )

    return tried


def digest_of(files: Sequence[StateFile]) -> str:
    """Return a digest that changes with the names and contents; empty for no files."""
    lines = sorted(f"{hashlib.sha256(file.content).hexdigest()}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest() if files else ""


def to_answer(files: Sequence[StateFile], known: str | None) -> dict[str, Any]:
    """Return what STATE describes; known is the digest of what the controller has already."""
    digest = digest_of(files)
    if not digest or digest == known:
        return {"digest": digest}
    return {"digest": digest, "files": packed(files)}


def packed(files: Sequence[StateFile]) -> list[dict[str, str]]:
    """Return the files as JSON can have them."""
    return [
        {"name": file.name, "data": base64.b64encode(zlib.compress(file.content, 6)).decode("ascii")} for file in files
    ]


def unpacked(files: Sequence[Mapping[str, str]]) -> list[StateFile]:
    """Return the files of packed. Raises StateError for another name, a second one of a name, or too much."""
    found: dict[str, StateFile] = {}
    for file in files:
        name = file["name"]
        if name not in MAX_BYTES or name in found:
            raise StateError(f"The state has the file {name!r:.60}, which is not expected.")
        found[name] = StateFile(name, _content(name, file["data"]))
    return list(found.values())


def _content(name: str, data: str) -> bytes:
    try:
        raw = base64.b64decode(data, validate=True)
        decompressor = zlib.decompressobj()
        content = decompressor.decompress(raw, MAX_BYTES[name] + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise StateError(f"The state's file {name} is damaged ({error}).") from error
    if len(content) > MAX_BYTES[name] or not decompressor.eof:
        raise StateError(f"The state's file {name} is larger than {MAX_BYTES[name] >> 20} MiB, or truncated.")
    return content
