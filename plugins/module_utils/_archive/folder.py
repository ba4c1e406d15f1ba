# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The folder of a host's backups on the controller: FOLDER/HOST/TIME.tar.zst, each with a checksum next to it.

The checksum file is one of sha256sum, with the digest of the state in a comment: without opening an archive a run
knows what it holds.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from .._core.files import read_regular, remove_leftovers, write_atomic
from . import archive
from .archive import MAX_ARCHIVE_BYTES, Archive, ArchiveError
from .retention import Keep, expired
from .state import StateError

SUFFIX = ".tar.zst"
CHECKSUM = ".sha256"
LATEST = "latest"
TIME = "%Y%m%dT%H%M%SZ"
FILE = re.compile(r"[0-9]{8}T[0-9]{6}Z" + re.escape(SUFFIX))
_CHECKSUM_TEXT = re.compile(rb"# state ([0-9a-f]{64})\n([0-9a-f]{64})  ([0-9TZ]+\.tar\.zst)\n")
# The name of a file on most file systems.
MAX_NAME_BYTES = 255


@dataclass(frozen=True)
class Newest:
    """The newest backup of a host: its time, empty without one; the state that it has, empty where it is not intact."""

    time: str = ""
    state: str = ""
    fault: str = ""


def host_folder(folder: str, host: str) -> str:
    """Return the folder of a host's backups. No name of a host leads out of folder. Raises StateError."""
    name = quote(host, safe="@+:")
    # quote leaves dots, and hidden folders are overlooked.
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if not name or len(name) > MAX_NAME_BYTES:
        raise StateError(f"The host {host!r:.80} has no backups: its name is too long or empty.")
    return os.path.join(folder, name)


def times(folder: str) -> list[str]:
    """Return the times of the backups in a host's folder, the oldest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(_valid([name.removesuffix(SUFFIX) for name in names if FILE.fullmatch(name)]))


def newest(folder: str) -> Newest:
    """Return what the newest backup in a host's folder is."""
    found = times(folder)
    if not found:
        return Newest()
    path = os.path.join(folder, found[-1] + SUFFIX)
    try:
        _data, state = _checked(path)
    except StateError as error:
        return Newest(found[-1], "", str(error))
    return Newest(found[-1], state)


def chosen(folder: str, at: str) -> str:
    """Return the path of the backup of a time, or of the latest. Raises StateError, which names those that exist."""
    found = times(folder)
    if not found:
        raise StateError(f"There is no backup in {folder}. backup.yml makes them, and backup_dir says where they are.")
    time = found[-1] if at == LATEST else re.sub("[-:]", "", at)
    if time not in found:
        raise StateError(
            f"at is {at!r:.60}, and there is no such backup in {folder}. It is {LATEST} or one of: {', '.join(found)}."
        )
    return os.path.join(folder, time + SUFFIX)


def load(path: str, host: str) -> Archive:
    """Return a host's backup. Raises StateError, which names the file."""
    data, _state = _checked(path)
    try:
        content = archive.read(data)
    except ArchiveError as error:
        raise StateError(_refused(path, str(error))) from error
    if content.host != host:
        raise StateError(
            f"{path} is a backup of the host {content.host!r:.80}, not of {host}. Nothing was changed. To restore it, "
            "use that name in the inventory."
        )
    return content


def _checked(path: str) -> tuple[bytes, str]:
    """The bytes of an archive with the checksum that is next to it, and the digest of its state."""
    data = read_regular(path, MAX_ARCHIVE_BYTES + 1)
    if data is None:
        raise StateError(f"{path} cannot be read. Nothing was changed. Run as the user who made the backups.")
    text = read_regular(path + CHECKSUM, 1024)
    match = _CHECKSUM_TEXT.fullmatch(text or b"")
    if match is None or match[3].decode() != os.path.basename(path):
        raise StateError(_refused(path, f"its checksum {os.path.basename(path)}{CHECKSUM} is missing or not one"))
    if hashlib.sha256(data).hexdigest() != match[2].decode():
        raise StateError(_refused(path, "it is truncated or was changed: its SHA-256 is not that of its checksum file"))
    return data, match[1].decode()


def _refused(path: str, why: str) -> str:
    return f"{path} is not used: {why}. Nothing was changed. Choose another backup (at), or bring this one back."


def store(folder: str, files: dict[str, bytes], host: str, state: str, now: datetime) -> str:
    """Write a backup and return its path. Folders are 0700 and files 0600. Raises OSError.

    Its time is now, or, where the clock has gone back, a second after that of the last one: the newest is the latest.
    """
    mask = os.umask(0o077)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    finally:
        os.umask(mask)
    remove_leftovers(folder)
    time = now.astimezone(timezone.utc).replace(microsecond=0)
    # Two runs in a second are two backups, too.
    time = max([time, *(_parsed(last) + timedelta(seconds=1) for last in times(folder)[-1:])])
    path = os.path.join(folder, f"{time:{TIME}}{SUFFIX}")
    data = archive.build(files, host, time, state)
    text = f"# state {state}\n{hashlib.sha256(data).hexdigest()}  {os.path.basename(path)}\n"
    # First: a run that is killed leaves a checksum without an archive, which is not listed.
    write_atomic(path + CHECKSUM, text.encode(), 0o600)
    write_atomic(path, data, 0o600)
    return path


def prune(folder: str, keep: Keep, spare: str = "") -> list[str]:
    """Remove the backups that are not kept any more, and return their times. Raises OSError.

    spare is the time of one that stays in any case: it is being restored.
    """
    parsed = [_parsed(time) for time in times(folder)]
    gone = [time for time in (f"{time:{TIME}}" for time in expired(parsed, keep)) if time != spare]
    for time in gone:
        for suffix in (SUFFIX, SUFFIX + CHECKSUM):
            try:
                os.unlink(os.path.join(folder, time + suffix))
            except FileNotFoundError:
                continue
    return gone


def _parsed(time: str) -> datetime:
    """The moment of a backup's name. Raises ValueError."""
    return datetime.strptime(time, TIME).replace(tzinfo=timezone.utc)


def _valid(found: Sequence[str]) -> list[str]:
    """Those that are times: 20261399T000000Z is someone's own file."""
    valid = []
    for time in found:
        try:
            _parsed(time)
        except ValueError:
            continue
        valid.append(time)
    return valid
