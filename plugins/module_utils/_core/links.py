# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Where a path leads."""

from __future__ import annotations

import os
from collections.abc import Iterable

# As in the kernel.
MAX_LINKS = 40


def stages(path: str) -> list[str]:
    """Return an absolute path and what it becomes each time a link in it is followed; the last one has no links.

    A path that does not exist ends where it stops existing. Links in a circle end after MAX_LINKS.
    """
    found = [os.path.normpath(path)]
    while len(found) <= MAX_LINKS:
        following = _followed(found[-1])
        if following is None:
            break
        found.append(following)
    return found


def _followed(path: str) -> str | None:
    """Return a path with its first link replaced by the link's target; None if it has no links."""
    parts = path.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        place = "/" + "/".join(parts[:count])
        try:
            target = os.readlink(place)
        except OSError:
            continue
        return os.path.normpath(os.path.join(os.path.dirname(place), target, *parts[count:]))
    return None


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Return whether a path is one of these folders or in one of them."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
