# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds what a host says of its servers to the inventory; documented in the module of the same name."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.gateway_members import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.documents import DocumentError
from ansible_collections.magi.llama.plugins.module_utils._core.values import ANY_ADDRESS, is_loopback
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import KEY, check_host
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = check_arguments(self, ARGUMENTS)
        run_id = this_run((task_vars or {})["inventory_hostname"])["id"]
        listed_at = time.monotonic()
        answer = self.ask("gateway_members", fill_in(self._task.args, run_id=run_id), task_vars)
        if "members" not in answer:
            return {**result, **answer}
        if not all(KEY.fullmatch(key) for key in answer["api_keys"]):
            raise AnsibleActionFail("A key of the servers' API key file has characters that no header can have.")
        ports = range(arguments["port_range_start"], arguments["port_range_end"] + 1)
        addresses = (arguments["host"], arguments["address"], *ANY_ADDRESS)
        servers = answer["members"]["servers"]
        taken = [
            server
            for server in servers
            if server["port"] in ports and (is_loopback(server["listens"]) or server["listens"] in addresses)
        ]
        left_out = [server["name"] for server in servers if server not in taken]
        if arguments["leaving"] is not None:
            lost = {server["name"] for server in servers if server not in taken and not server.get("draining")}
            _refuse_lost(sorted((lost & {*answer["running"]}) - {*arguments["leaving"]}))
        # The address is the inventory's, not one that the host reports.
        members = {"address": arguments["address"], "servers": taken}
        try:
            # Gateways keep the old entry instead of such a one, and would send requests to servers that are stopped.
            check_host(members, answer["api_keys"])
        except DocumentError as error:
            raise AnsibleActionFail(f"No gateway can use what this host reports of its servers: {error}.") from error
        # Only an error is shown: the answer has the servers' keys.
        found = {"members": members, "left_out": left_out, "listed_at": listed_at}
        return {**result, **answer, **found, "_ansible_no_log": True}


def _refuse_lost(names: list[str]) -> None:
    """Raise AnsibleActionFail for servers that run and that a change would take out of the gateways at once."""
    if names:
        raise AnsibleActionFail(
            f"The gateways would send no more requests to {', '.join(names)} before other servers take their place, as "
            "their address or port is not of the inventory any more: widen the range or name both addresses first "
            "(servers_port_range_start, servers_port_range_end, servers_host, servers_address)."
        )
