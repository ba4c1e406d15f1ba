# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read the API key file by llama-server's rules, and check who can read and change it. No key is copied."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from .._core.commands import ids_of, run_command
from .._core.errors import MagiError

MAX_BYTES = 1024 * 1024


class KeyFileError(MagiError):
    """Raised for an API key file that the servers could not use, or that other users could change."""


class KeyFile(NamedTuple):
    """A usable key file: a stamp that changes with it, and warnings."""

    stamp: str
    warnings: tuple[str, ...] = ()


class Keys(NamedTuple):
    """The contents of a key file: keys that a client can send, and the numbers of lines that no client can send."""

    usable: tuple[str, ...]
    faulty_lines: tuple[int, ...]


def parse_keys(content: bytes) -> Keys:
    """Return the keys in a file's content, by llama-server's rules.

    It skips empty lines and lines that begin with "#". Any other line is a key as a whole, including a carriage return,
    white space or a later "#". A file without such a line leaves the server open to everyone.
    """
    usable, faulty = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line or line.startswith(b"#"):
            continue
        # A header's value has no white space at its ends and no control characters.
        if line.strip() == line and all(0x20 <= byte < 0x7F for byte in line):
            usable.append(line.decode("ascii"))
        else:
            faulty.append(number)
    return Keys(tuple(usable), tuple(faulty))


def check_key_file(path: str, user: str | None, groups: Sequence[str] = ()) -> KeyFile:
    """Check the file, and that the user, who may not exist yet, can read it.

    user is None if the service manager reads the file for the servers; groups are additional groups of that user.
    Raises KeyFileError.
    """
    if not os.path.isabs(path):
        raise KeyFileError(f"servers_api_key_file is {path}: set it to an absolute path on the host.")
    content: bytes | None
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"The API key file {path} is not a regular file: write one key per line to a file.")
        with open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except PermissionError:
        # The connecting user need not be able to read it, only the servers' user.
        content = status = None
    except OSError as error:
        raise KeyFileError(
            f"The API key file {path} cannot be read: {error.strerror}. Create it with one key per line, or set "
            "servers_api_key_file to its path."
        ) from error
    if content is not None:
        _check_content(path, content)
    _refuse_writable(path)
    if user is not None and not _is_readable(path, user, groups):
        raise KeyFileError(
            f"The API key file {path} cannot be read by the servers' user {user}: give it and its folders to a group "
            f"of that user (chgrp {user} {path}; chmod 640 {path}), or name its group in servers_user_groups."
        )
    if status is None:
        return KeyFile("")
    warnings = (
        [f"Every user of the host can read the API key file {path}: chmod 640 {path}."]
        if status.st_mode & stat.S_IROTH
        else []
    )
    return KeyFile(f"{status.st_size}.{status.st_mtime_ns}.{status.st_ino}", tuple(warnings))


def _check_content(path: str, content: bytes) -> None:
    if len(content) > MAX_BYTES:
        raise KeyFileError(f"The API key file {path} is larger than 1 MiB: write one key per line to it.")
    keys = parse_keys(content)
    if keys.faulty_lines:
        lines = ", ".join(str(number) for number in keys.faulty_lines[:5])
        raise KeyFileError(
            f"The API key file {path} has a key that no client can send, in line {lines}: llama-server takes a line as "
            "it is, so white space at its ends, a carriage return (dos2unix) and letters other than ASCII belong to "
            'the key, and a comment has its "#" in the first column.'
        )
    if not keys.usable:
        raise KeyFileError(
            f"The API key file {path} contains no key, so the servers would be open to everyone: write one key per "
            'line to it. Lines that begin with "#" are comments.'
        )


def _refuse_writable(path: str) -> None:
    """Raise KeyFileError if any user of the host could change the file or replace it."""
    part = os.path.realpath(path)
    while True:
        try:
            mode = os.stat(part).st_mode
        except OSError:
            return
        if mode & stat.S_IWOTH and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            what = "" if part == os.path.realpath(path) else f", as its folder {part}"
            raise KeyFileError(f"Every user of the host can change the API key file {path}{what}: chmod o-w {part}.")
        if part == os.path.dirname(part):
            return
        part = os.path.dirname(part)


def first_key(path: str | None) -> str | None:
    """The first key of the file; None without a file, or if this user cannot read it or it holds no key."""
    if not path:
        return None
    try:
        with open(path, "rb") as stream:
            return next(iter(parse_keys(stream.read(MAX_BYTES)).usable), None)
    except OSError:
        return None


def _is_readable(path: str, user: str, groups: Sequence[str]) -> bool:
    if os.geteuid() != 0:
        return os.access(path, os.R_OK)
    return run_command(["test", "-r", path], os.environ, user=ids_of(user, groups)).code == 0
