# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records and reports what a rollout did to each host; documented in the module of the same name."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import split_args
from ansible.parsing.utils.yaml import from_yaml
from ansible_collections.magi.llama.plugins.module_utils._arguments.rollout import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._output import rollout_summary
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.earlier_tasks import begun
from ansible_collections.magi.llama.plugins.plugin_utils.events import event
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import load_spec
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import are_called_by_path
from ansible_collections.magi.llama.plugins.plugin_utils.result_file import publish
from ansible_collections.magi.llama.plugins.plugin_utils.show import show

ROLE = Path(__file__).parents[2] / "roles/servers"

# Options for reaching hosts and finding secrets, with their defaults.
OPTIONS = {
    "remote_user": ("--user", constants.DEFAULT_REMOTE_USER),
    "private_key_file": ("--private-key", constants.DEFAULT_PRIVATE_KEY_FILE),
    "connection": ("--connection", constants.DEFAULT_TRANSPORT),
    "ssh_common_args": ("--ssh-common-args", None),
    "ssh_extra_args": ("--ssh-extra-args", None),
    "sftp_extra_args": ("--sftp-extra-args", None),
    "scp_extra_args": ("--scp-extra-args", None),
    "ask_pass": ("--ask-pass", False),
    "connection_password_file": ("--connection-password-file", constants.CONNECTION_PASSWORD_FILE),
    "become": ("--become", constants.DEFAULT_BECOME),
    "become_user": ("--become-user", constants.DEFAULT_BECOME_USER),
    "become_method": ("--become-method", constants.DEFAULT_BECOME_METHOD),
    "become_ask_pass": ("--ask-become-pass", False),
    "become_password_file": ("--become-password-file", constants.BECOME_PASSWORD_FILE),
    "vault_ids": ("--vault-id", None),
    "vault_password_files": ("--vault-password-file", None),
    "ask_vault_pass": ("--ask-vault-pass", False),
}


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS, paths_of_host=False)
        result["changed"] = False
        if arguments["step"] == "gate":
            is_closed = rollout_summary.is_closed(_hosts(task_vars).values(), arguments["max_unreachable"])
            return {**result, "is_closed": is_closed}
        if arguments["step"] == "summary":
            return {**result, **self._summary(arguments, task_vars)}
        host = self._host(arguments, task_vars)
        if arguments["step"] in ("updated", "failed"):
            own = {str(task_vars["inventory_hostname"]): host}
            event(task_vars, "rollout", {"rollout": rollout_summary.summary(own, host["seconds"] or 0.0)})
        return {**result, "ansible_facts": {"llama_rollout": host}}

    def _host(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        step, found = arguments["step"], task_vars["ansible_facts"]
        if step == "begin":
            return {**rollout_summary.begin(), "began": time.time()}
        host = rollout_summary.recorded(found.get("llama_rollout"))
        if step == "update":
            return {**host, "state": "updating", "began": time.time()}
        began = host["state"] != "untouched" and "began" in host
        host["seconds"] = round(time.time() - host["began"], 1) if began else None
        plan = found.get("llama_plan") or {}
        if step == "failed":
            command = _rollback_command(task_vars) if arguments["touched"] and not _is_check() else None
            host = rollout_summary.failed(
                host, plan, arguments["health"], arguments["task"], arguments["error"], command
            )
            return {**host, "is_unreachable": arguments["unreachable"] and not arguments["touched"]}
        if not _is_check() and "servers" not in arguments["verified"]:
            raise AnsibleActionFail("The connection to the host was lost before its servers answered.")
        if arguments["prompts"].get("unreachable"):
            raise AnsibleActionFail("The connection to the host was lost before its servers answered the prompts.")
        # Unreachable hosts are ignored, to be in the summary: a task that changes servers may not have reached one.
        others = rollout_summary.not_as_planned(plan, arguments["health"].get("running") or {})
        if others and not _is_check():
            raise AnsibleActionFail(
                f"{', '.join(others)}: not running as planned. The connection to the host was lost while its servers "
                "were started and stopped."
            )
        return rollout_summary.updated(host, plan, arguments["health"], _is_check())

    def _summary(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        hosts = _hosts(task_vars)
        answer = rollout_summary.summary(hosts, time.time() - begun(task_vars)["started"])
        event(None, "rollout", {"rollout": answer})
        on_screen = arguments["format"] == "json"
        show(task_vars, rollout_summary.summary_lines(answer), prefixed=False)
        if on_screen or arguments["path"]:
            publish(answer, on_screen, arguments["path"])
        failures = {
            name: rollout_summary.failure_text(name, host)
            for name, host in answer["hosts"].items()
            if host["state"] == "failed"
        }
        return {"rollout": answer, "failures": failures}


def _hosts(task_vars: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is recorded of each host of the play. A fact is not only ours to set: another one is a failed host."""
    names, host_vars = task_vars["ansible_play_hosts_all"], task_vars["hostvars"]
    return {
        name: rollout_summary.recorded((host_vars[name].get("ansible_facts") or {}).get("llama_rollout"))
        for name in names
    }


def _is_check() -> bool:
    """Whether the whole run is in check mode; single plays or tasks may be too."""
    return bool(context.CLIARGS.get("check"))


def _rollback_command(task_vars: dict[str, Any]) -> str:
    """The command of this run, limited to this host."""
    given = context.CLIARGS
    playbook = Path(task_vars["playbook_dir"]) / "rollback.yml"
    return rollout_summary.rollback_command(
        _short(str(playbook)) if are_called_by_path() and playbook.exists() else "magi.llama.rollback",
        [_short(path) for path in given.get("inventory") or ()],
        task_vars["inventory_hostname"],
        [part for text in given.get("extra_vars") or () for part in _parts(str(text))],
        [word for name, option in OPTIONS.items() for word in _option(given.get(name), *option)],
        _rollback_variables(),
    )


def _rollback_variables() -> set[str]:
    """Return the names of the variables that rollback.yml uses and that hold no secret."""
    specs = DataLoader().load_from_file(str(ROLE / "meta/argument_specs.yml"))["argument_specs"]
    spec = load_spec()
    options = {name: spec["variables"][name] for name in spec["playbooks"]["rollback"]["variables"]}
    options.update(specs["rollback"]["options"])
    secret = {name for name, option in spec["variables"].items() if option.get("no_log")}
    return set(options) - secret


def _parts(text: str) -> list[Any]:
    """Parse one -e option: key=value pairs, a file name or a mapping."""
    if text.startswith("@"):
        return [text]
    if text.startswith(("{", "[")):
        return [from_yaml(text)]
    return list(split_args(text))


def _option(value: Any, name: str, default: Any) -> list[str]:
    if not value or value == default:
        return []
    if value is True:
        return [name]
    # With =, as the value may begin with a dash.
    return [f"{name}={one}" for one in (value if isinstance(value, (list, tuple)) else [value])]


def _short(path: str) -> str:
    """Return a path relative to the working directory if that is shorter."""
    if not os.path.isabs(path):
        return path
    return min(path, os.path.relpath(path), key=len)
