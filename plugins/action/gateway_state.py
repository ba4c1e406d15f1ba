# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects the servers of this run's hosts for a gateway; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.show import show

# The variable in which gateway.yml keeps what gateway_members found on a host.
FOUND = "__gateway_members"


class ActionModule(HostAction):
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        hostvars, inventory = task_vars["hostvars"], list(task_vars["groups"]["all"])
        found = {
            host: hostvars[host][FOUND]
            for host in inventory
            if FOUND in hostvars[host] and "members" in hostvars[host][FOUND]
        }
        arguments = fill_in(
            self._task.args,
            hosts={host: entry["members"] if entry["members"]["servers"] else None for host, entry in found.items()},
            keys={host: entry["key"] for host, entry in found.items()},
            # A host of an inventory file that is not given this time is unknown too, so only named hosts count.
            inventory=inventory,
        )
        answer = self.ask("gateway_state", arguments, task_vars)
        result.update(answer)
        if "how" in answer:
            show(task_vars, [_line(answer, self._task.args["name"])])
        for host, entry in found.items():
            if entry["left_out"]:
                show(
                    task_vars,
                    [
                        f"      warning  {host}: not in the gateway, as their address or port is not of the "
                        f"inventory: {', '.join(entry['left_out'])}"
                    ],
                )
        return result


HOW = {
    "nothing": "unchanged",
    "maps": "changed while running",
    "servers": "changed while running",
    "reload": "reloaded",
    "start": "started",
    "stop": "removed",
}


def _line(answer: dict[str, Any], name: str) -> str:
    if answer["how"] == "missing":
        return as_called(f"gateway {name}: not set up yet, run gateway.yml")
    count = sum(answer["models"].values())
    models = len(answer["models"])
    what = f"{count} server{'s' * (count != 1)} of {models} model{'s' * (models != 1)}"
    return f"gateway {answer['url']}: {HOW[answer['how']]}" + (f", {what}" if answer["how"] != "stop" else "")
