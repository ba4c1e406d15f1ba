# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Compare the running servers of a host with its deployment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from .._core.processes import Process
from .._plan.differences import launch_differences
from .probe import Server


def drift(
    servers: Sequence[Server],
    pids: Mapping[str, int | None],
    running: Mapping[str, Process],
    configs: Mapping[str, str],
    sleeping: Collection[str] = (),
) -> dict[str, str]:
    """The reasons, by server name, for servers that do not run as deployed, or run without being deployed.

    pids are the processes that the service manager reports. Processes that this user may not inspect are left out.
    sleeping are those that a request starts.
    configs are the reasons that the launch configs give, by server name, or by path for the others.
    """
    found = {}
    for server in servers:
        name, process = str(server["name"]), running.get(server["name"])
        if process is not None and "revision" in server:
            found[name] = "; ".join(launch_differences(dict(server), process))
        elif process is None and pids.get(name) is None and name not in sleeping:
            found[name] = "not running"
    deployed = {server["name"] for server in servers}
    found.update({name: "runs and is not deployed" for name in running if name not in deployed})
    together = {name: [found.get(name, ""), configs.get(name, "")] for name in {**found, **configs}}
    return {name: "; ".join(filter(None, reasons)) for name, reasons in together.items() if any(reasons)}
