# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Which files the servers of a plan read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._core.argv import PATH_FLAGS, flag_values
from .inputs import PlanError

MAX_LISTED = 5


def files_to_read(plan: Mapping[str, Any], registry: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that servers read at their next start, each with the name of one of these servers."""
    parts = {str(model["path"]): model.get("files") or [] for model in registry["models"]}
    files: dict[str, str] = {}
    for server in plan["servers"]:
        if server["action"] not in ("start", "restart"):
            continue
        for path in flag_values(server["argv"], PATH_FLAGS):
            for part in [path, *parts.get(path, [])]:
                if os.path.isabs(part):
                    files.setdefault(part, str(server["name"]))
    return files


def require_readable(
    plan: Mapping[str, Any],
    registry: Mapping[str, Any],
    user: str,
    unreadable: Callable[[Sequence[str]], Sequence[str]],
) -> None:
    """Raise PlanError if the servers' user may not read a file that a server is to be started with."""
    files = files_to_read(plan, registry)
    wrong = unreadable(list(files))
    if not wrong:
        return
    listed = ", ".join(f"{path} (server {files[path]})" for path in wrong[:MAX_LISTED])
    more = f" and {len(wrong) - MAX_LISTED} more" if len(wrong) > MAX_LISTED else ""
    raise PlanError(
        f"The servers' user {user} cannot read {listed}{more}. Nothing was changed. If the file exists, let that user "
        "read it (chmod o+r) and enter its folders (chmod o+x), or add a group that may to servers_user_groups."
    )
