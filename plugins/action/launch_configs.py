# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders the launch configs of all servers on the controller; documented in the module of the same name."""

from __future__ import annotations

import os
import uuid
from typing import Any

from ansible.template import trust_as_template
from ansible_collections.magi.llama.plugins.module_utils._arguments.launch_configs import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.addresses import LOCAL, allowed_addresses
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.values import is_loopback
from ansible_collections.magi.llama.plugins.module_utils._deployment.config_drift import planned_drift
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import record_of
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import of_configs, planned
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import File
from ansible_collections.magi.llama.plugins.module_utils._services.manager import ServiceManager
from ansible_collections.magi.llama.plugins.module_utils._services.table import find_manager
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run

UNKNOWN = (
    "The address that other hosts see of {} is not known, so every address may reach the servers: set ansible_host of "
    "these gateways, or servers_allow_addresses."
)
MANAGED = "Ansible managed (magi.llama): changes made here are lost in the next run"


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS)
        manager, state_dir = find_manager(arguments["service_manager"]), plain_path(arguments["state_dir"])
        allowed, unknown = _allowed(arguments["allow_addresses"], task_vars)
        task_vars = {**task_vars, "state_dir": state_dir, "allow_addresses": allowed}
        servers = [server for server in arguments["plan"]["servers"] if server["action"] != "stop"]
        if unknown and any(not is_loopback(str(server.get("host", ""))) for server in servers):
            result["warnings"] = [UNKNOWN.format(", ".join(unknown))]
        common = self._template(arguments["common_template"] or manager.common_template)
        paths, contents = self._of_servers(manager, arguments["template"], servers, task_vars)
        paths.append(manager.common_config_path(state_dir))
        contents.append(self._render(common, task_vars))
        wanted = [File(path, content.encode()) for path, content in zip(paths, contents, strict=True)]
        deployed = arguments["deployed"]
        digests = planned(state_dir, record_of(arguments["plan"], manager.name), wanted)
        result["configs"] = of_configs(state_dir, digests)
        if deployed == digests:
            return {**result, "changed": False, "written": [], "removed": [], "drift": {}}
        configs = [{"path": path, "content": content} for path, content in zip(paths, contents, strict=True)]
        module_args = fill_in(
            {**self._task.args, "deployed": None},
            configs=configs,
            run_id=this_run(task_vars["inventory_hostname"])["id"],
        )
        result.update(self.ask("launch_configs", module_args, task_vars))
        if deployed is not None:
            parts = (of_configs(state_dir, deployed), of_configs(state_dir, digests))
            result["drift"] = planned_drift(state_dir, manager.name, arguments["plan"]["servers"], *parts)
        return result

    def _of_servers(
        self, manager: ServiceManager, own: str | None, servers: list[dict[str, Any]], task_vars: dict[str, Any]
    ) -> tuple[list[str], list[str]]:
        """Return paths and texts of the servers' launch configs. own is a template that replaces the manager's."""
        state_dir = task_vars["state_dir"]
        by_template: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for server in servers:
            for path, template in manager.config_paths(state_dir, server).items():
                by_template.setdefault(template, []).append((path, server))
        paths, contents = [], []
        for name, found in by_template.items():
            template = self._template((own if name == manager.template else None) or name)
            paths += [path for path, _server in found]
            contents += self._render_all(template, [server for _path, server in found], task_vars)
        for path, name in manager.program_files(state_dir, servers).items():
            paths.append(path)
            source = self._loader.get_text_file_contents(os.fspath(self._find_needle("files", name)))
            contents.append(f"# {MANAGED}\n{source}")
        return paths, contents

    def _template(self, name: str) -> str:
        path = self._find_needle("templates", name)
        # The role's own file is the only text with expressions. Values filled in are never templated again.
        return trust_as_template(self._loader.get_text_file_contents(os.fspath(path)))

    def _render_all(self, template: str, servers: list[dict[str, Any]], variables: dict[str, Any]) -> list[str]:
        """Render the template for each server, in one pass, because compiling takes longer than rendering."""
        boundary = f"\n{uuid.uuid4()}\n"
        looped = trust_as_template(f"{{% for server in __servers %}}{template}{boundary}{{% endfor %}}")
        texts = self._render(looped, {**variables, "__servers": servers}).split(boundary)[: len(servers)]
        return [text.rstrip("\n") + "\n" for text in texts]

    def _render(self, template: str, variables: dict[str, Any]) -> str:
        templar = self._templar.copy_with_new_env(available_variables={"ansible_managed": MANAGED, **variables})
        overrides = {"trim_blocks": True, "lstrip_blocks": True}
        return str(templar.template(template, escape_backslashes=False, overrides=overrides)).rstrip("\n") + "\n"


def _allowed(wanted: list[str], task_vars: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Who may reach the servers, and the gateways whose address is not known."""
    gateways: dict[str, str | None] = {}
    for name in (task_vars.get("groups") or {}).get("gateways", []):
        variables = task_vars["hostvars"][name]
        is_controller = variables.get("ansible_connection") in ("local", "ansible.builtin.local")
        gateways[name] = None if is_controller else str(variables.get("ansible_host") or name)
        if name == task_vars["inventory_hostname"]:
            # It reaches its servers by itself.
            gateways[name] = LOCAL
    return allowed_addresses(wanted, gateways)
