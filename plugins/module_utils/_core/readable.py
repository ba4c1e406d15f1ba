# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which files another user may read."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .commands import SECONDS, User, run_command

# Well below the limit on a command line, with paths of any length.
_BATCH = 400
_SCRIPT = 'n=0; for path; do [ -r "$path" ] || echo $n; n=$((n+1)); done'


def unreadable(paths: Sequence[str], user: User | None, seconds: float = SECONDS) -> list[str]:
    """Return the paths that a user may not read, or that are missing; user is None for this process's own.

    Asked as that user: permissions of all parent folders, groups and ACLs count. Raises CommandTimeoutError.
    """
    if user is None:
        return [path for path in paths if not os.access(path, os.R_OK)]
    found = []
    for first in range(0, len(paths), _BATCH):
        batch = paths[first : first + _BATCH]
        done = run_command(["/bin/sh", "-c", _SCRIPT, "sh", *batch], {}, seconds, user=user)
        found += [batch[int(number)] for number in done.stdout.split()]
    return found
