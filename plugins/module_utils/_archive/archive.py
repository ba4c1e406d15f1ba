# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A backup: a tar archive with a manifest, which has the digest of each file. Nothing is ever unpacked to a disk."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .._core.documents import Document, DocumentError, Fields
from .._core.errors import MagiError
from .._deployment.record import DEPLOYMENT
from .._launch.api_keys import parse_keys
from .._models.registry_file import REGISTRY as REGISTRY_DOCUMENT
from . import zstd
from .state import DATABASE, KEYS, MAX_BYTES, RECORD, REGISTRY, StateError, StateFile

MANIFEST = "manifest.json"
# API keys are stored in no other form.
ENCRYPTED_KEYS = "api-keys.vault"
# ansible-vault writes two digits of hexadecimal for one of hexadecimal, and newlines.
MAX_MEMBER_BYTES = {RECORD: MAX_BYTES[RECORD], REGISTRY: MAX_BYTES[REGISTRY], ENCRYPTED_KEYS: 5 * MAX_BYTES[KEYS]}
MAX_MEMBER_BYTES[DATABASE] = MAX_BYTES[DATABASE]
DATABASE_HEADER = b"SQLite format 3\0"
MAX_MANIFEST_BYTES = 64 << 10
MAX_ARCHIVE_BYTES = sum(MAX_MEMBER_BYTES.values()) + (1 << 20)
BACKUP = Document(
    "backup",
    1,
    Fields(
        {
            "collection_version": str,
            "host": str,
            "taken_at": re.compile("[0-9]{8}T[0-9]{6}Z"),
            "state": re.compile("[0-9a-f]{64}"),
            "files": [
                Fields(
                    {
                        "name": re.compile("|".join(map(re.escape, MAX_MEMBER_BYTES))),
                        "sha256": re.compile("[0-9a-f]{64}"),
                        "size": int,
                    }
                )
            ],
        }
    ),
)


class ArchiveError(MagiError):
    """An archive that is not used: truncated, changed, or not one of ours. The text names no file."""


@dataclass(frozen=True)
class Archive:
    """A checked backup: whose it is, and its files by name, where API keys are still encrypted."""

    host: str
    taken_at: str
    files: dict[str, bytes]


def faults(files: Sequence[StateFile]) -> list[str]:
    """Return what is wrong with files that a host has sent: with it a restore would not work."""
    found = []
    for file in files:
        try:
            if file.name == DATABASE:
                if not file.content.startswith(DATABASE_HEADER):
                    found.append(f"{file.name} is not a database of SQLite")
            elif file.name == KEYS:
                keys = parse_keys(file.content)
                if not keys.usable or keys.faulty_lines:
                    found.append(f"{file.name} has no usable key, or a line that no client can send")
            else:
                (DEPLOYMENT if file.name == RECORD else REGISTRY_DOCUMENT).load(json.loads(file.content))
        except (ValueError, RecursionError, DocumentError, AttributeError, TypeError) as error:
            found.append(f"{file.name} is damaged ({error!s:.200})")
    return found


def build(files: dict[str, bytes], host: str, taken_at: datetime, state: str) -> bytes:
    """Return an archive with these files by name, compressed. state is the digest of the host's state."""
    manifest = BACKUP.stamp(
        {
            "host": host,
            "taken_at": f"{taken_at:%Y%m%dT%H%M%SZ}",
            "state": state,
            "files": [
                {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                for name, content in sorted(files.items())
            ],
        }
    )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        text = (json.dumps(manifest, indent=1) + "\n").encode()
        for name, content in [(MANIFEST, text), *sorted(files.items())]:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(content), 0o600, int(taken_at.timestamp())
            archive.addfile(member, io.BytesIO(content))
    return zstd.compress(stream.getvalue())


def read(data: bytes) -> Archive:
    """Return the content of an archive, all of it checked. Raises ArchiveError."""
    try:
        members = _members(zstd.decompress(data, MAX_ARCHIVE_BYTES))
    except zstd.ZstdError as error:
        raise ArchiveError(str(error)) from error
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ArchiveError(f"it is damaged ({error})") from error
    manifest = _manifest(members.pop(MANIFEST, b""))
    recorded = {file["name"]: file for file in manifest["files"]}
    if members.keys() != recorded.keys() or len(recorded) != len(manifest["files"]):
        raise ArchiveError("its files are not those of its manifest")
    for name, content in members.items():
        if hashlib.sha256(content).hexdigest() != recorded[name]["sha256"]:
            raise ArchiveError(f"its file {name} was changed: the manifest has another SHA-256")
    if not members.keys() & {RECORD, DATABASE}:
        raise ArchiveError(f"it has no {RECORD}")
    return Archive(manifest["host"], manifest["taken_at"], members)


def _members(data: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            limit = MAX_MANIFEST_BYTES if member.name == MANIFEST else MAX_MEMBER_BYTES.get(member.name, -1)
            if not member.isreg() or member.size > limit or member.name in found:
                raise ArchiveError(f"it has the member {member.name!r:.60}, which a backup does not have")
            stream = archive.extractfile(member)
            content = stream.read() if stream is not None else b""
            if len(content) != member.size:
                raise ArchiveError("it is truncated")
            found[member.name] = content
    return found


def _manifest(text: bytes) -> dict[str, Any]:
    try:
        return BACKUP.load(json.loads(text))
    except (ValueError, RecursionError, DocumentError) as error:
        raise ArchiveError(f"its manifest is damaged or missing ({error!s:.200})") from error


def state_files(archive: Archive, keys: bytes | None) -> list[StateFile]:
    """Return the state that an archive has; keys are decrypted, None to leave them alone. Raises StateError."""
    files = [StateFile(name, content) for name, content in archive.files.items() if name != ENCRYPTED_KEYS]
    files += [StateFile(KEYS, keys)] if keys is not None else []
    wrong = faults(files) if RECORD in archive.files else [f"it has no {RECORD}, so it is not one of a host's state"]
    if wrong:
        raise StateError(f"The backup of {archive.taken_at} is not used: {'; '.join(wrong)}. Nothing was changed.")
    return files
