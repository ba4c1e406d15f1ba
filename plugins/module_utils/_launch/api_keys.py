# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Check the file with the servers' API keys: whether servers can use it, and whether it changed. No key is copied."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Sequence

from .._core.commands import User, run_command
from .._core.errors import MagiError


class KeyFileError(MagiError):
    """Raised for an API key file that the servers could not use."""


def check_key_file(path: str, user: str, groups: Sequence[str] = ()) -> str:
    """Check that the user, who may not exist yet, can read the file; return a stamp that changes with it.

    groups are additional groups of that user. Raises KeyFileError.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"The API key file {path} is not a regular file: write one key per line to a file.")
        with open(path, "rb") as stream:
            # The connecting user may lack permission to read it; then only the servers' user counts.
            is_empty = not stream.read(65536).strip()
    except PermissionError:
        is_empty = False
        status = None
    except OSError as error:
        raise KeyFileError(
            f"The API key file {path} cannot be read: {error.strerror}. Create it with one key per line, or set "
            "servers_api_key_file to its path."
        ) from error
    if is_empty:
        raise KeyFileError(f"The API key file {path} contains no key: write the keys into it, one per line.")
    if not _is_readable(path, user, groups):
        raise KeyFileError(
            f"The API key file {path} cannot be read by the servers' user {user}: give it and its folders to a group "
            f"of that user (chgrp {user} {path}; chmod 640 {path}), or name its group in servers_user_groups."
        )
    return "" if status is None else f"{status.st_size}.{status.st_mtime_ns}.{status.st_ino}"


def first_key(path: str | None) -> str | None:
    """The first key of the file; None without a file, or if this user cannot read it or it contains no key."""
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            return next((line.strip() for line in stream if line.strip()), None)
    except OSError:
        return None


def _is_readable(path: str, user: str, groups: Sequence[str]) -> bool:
    if os.geteuid() != 0:
        return os.access(path, os.R_OK)
    further = [entry.gr_gid for name in groups for entry in _group(name)]
    try:
        entry = pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
        further += os.getgrouplist(user, gid)
    except KeyError:
        # Not created yet: an unprivileged uid, and only the groups that it will have.
        uid, gid = 65534, 65534
    done = run_command(["test", "-r", path], os.environ, user=User(uid, gid, further))
    return done.code == 0


def _group(name: str) -> list[grp.struct_group]:
    try:
        return [grp.getgrnam(name)]
    except KeyError:
        return []
