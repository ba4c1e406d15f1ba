# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Root works on a models folder as the user who owns it: that user could lead root elsewhere by a link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._core.ownership import require_trusted


@contextlib.contextmanager
def as_owner_of(folder: str) -> Iterator[None]:
    """As root, have the rights of the folder's owner meanwhile; with root's own, only where no one else can change it.

    Raises OwnershipError. A folder that is missing is left to the caller.
    """
    if os.geteuid() != 0 or not os.path.isdir(folder):
        yield
        return
    status = os.stat(folder)
    if status.st_uid == 0:
        require_trusted(folder)
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


@contextlib.contextmanager
def only_as_owner() -> Iterator[None]:
    """Give up root's real uid too, meanwhile: with it a process could still send signals to those of root."""
    user = os.getuid()
    os.setresuid(os.geteuid(), -1, -1)
    try:
        yield
    finally:
        os.setresuid(user, -1, -1)


def keep_rights() -> None:
    """Give up for good what as_owner_of has given up; for a process that ends with these rights."""
    user, group = os.geteuid(), os.getegid()
    if os.getuid() == user:
        return
    os.seteuid(0)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
