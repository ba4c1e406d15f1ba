# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects the servers of this run's hosts for a gateway; documented in the module of the same name."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.text import clean_text
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import client_entry, parse_clients
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.inputs import inputs_from_facts
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show
from ansible_collections.magi.llama.plugins.plugin_utils.side_by_side import ALL, BEGIN, END, answer_of, begin
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import has_ended

# The variable in which members.yml keeps what gateway_members found on a host.
FOUND = "__gateway_members"
HOW = {
    "nothing": "unchanged",
    "maps": "changed while running",
    "servers": "changed while running",
    "reload": "reloaded",
    "start": "started",
    "stop": "removed",
}


class ActionModule(HostAction):
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given = dict(self._task.args)
        state, part = given.get("state", "present"), given.pop("part", ALL)
        # Keys of clients stay on the controller: a gateway knows their digests.
        clients = [client_entry(client) for client in parse_clients(given.pop("api_keys", None) or [])]
        found, warnings = _found(task_vars) if state in ("present", "updated") else ({}, [])
        arguments = fill_in(
            given,
            hosts={host: entry["members"] if entry["members"]["servers"] else None for host, entry in found.items()},
            ages={host: age for host, entry in found.items() if (age := _age(entry)) is not None},
            keys=json.dumps({host: entry["api_keys"] for host, entry in found.items()}),
            clients=json.dumps(clients),
            inventory=list(task_vars["groups"]["all"]),
        )
        key = f"{state} {given['name']}"
        if part == BEGIN:
            begin(key, lambda: self._asked(arguments, task_vars), connection=self._connection)
            return {**result, "changed": False}
        try:
            answer = {**(answer_of(key) if part == END else self._asked(arguments, task_vars)), "is_reached": True}
        except AnsibleConnectionFailure as error:
            if state not in ("read", "updated"):
                raise
            # It is not one of the hosts that are changed: these end by a sentence of their own.
            return {**result, "changed": False, "is_reached": False, "msg": f"{given['name']}: {error}"}
        except AnsibleActionFail as error:
            if state not in ("read", "updated"):
                raise
            answer = {"failed": True, "msg": str(error)}
        if answer.get("failed") and state in ("read", "updated"):
            # The task runs once for all of them: where it failed, the others would lack its answer.
            refused = str(answer.get("msg") or "it failed without a message")
            return {**result, "changed": False, "is_reached": True, "refused": f"{given['name']}: {refused}"}
        if "how" in answer and state not in ("prepared", "read"):
            late = [f"{name} has not passed the gateway's check yet" for name in answer.get("not_ready") or []]
            lines = (f"{WARNING}{text}" for text in [*warnings, *late])
            show(task_vars, [_line(answer, str(given["name"])), *lines])
        return {**result, **answer}

    def _asked(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.ask("gateway_state", arguments, task_vars)
        finally:
            # Ansible removes the files of the process that handles the task, and this may be another one.
            self.cleanup()


def _found(task_vars: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What gateway_members has found on each host of this run, and warnings about what is not used of it.

    A host decides about itself only: its facts name no servers. gateway_members has held its entry to the shape of one.
    """
    found, warnings = {}, []
    for host in task_vars["groups"]["all"]:
        variables = task_vars["hostvars"][host]
        entry = variables.get(FOUND)
        if isinstance(entry, dict) and entry.get("unreachable"):
            warnings.append(f"{host}: it was not reached, so the gateway keeps what it knows of its servers.")
        if not isinstance(entry, dict) or "members" not in entry:
            continue
        if FOUND in inputs_from_facts(variables):
            warnings.append(f"{host}: it reports a fact {FOUND}, which is not used.")
            continue
        holder = entry.get("holder")
        if holder and not has_ended(holder):
            # It may drain servers, which this run would give to the gateways again.
            text = clean_text(str(holder["text"]))
            warnings.append(f"{host}: another run is changing it ({text}), and changes what the gateway knows of it.")
            continue
        found[host] = entry
        if entry.get("left_out"):
            names = ", ".join(map(str, entry["left_out"]))
            warnings.append(f"{host}: {names} are left out: their address or port is not of the inventory.")
    return found, warnings


def _age(entry: Mapping[str, Any]) -> float | None:
    """How many seconds ago a host was looked at; None where this run has locked it since."""
    if entry.get("is_locked", True) or "listed_at" not in entry:
        return None
    return time.monotonic() - float(entry["listed_at"])


def _line(answer: dict[str, Any], name: str) -> str:
    if answer["how"] == "missing":
        return as_called(f"gateway {name}: not set up yet, run gateway.yml")
    count, models = sum(answer["models"].values()), len(answer["models"])
    what = f"{count} server{'s' * (count != 1)} of {models} model{'s' * (models != 1)}"
    return f"gateway {answer['url']}: {HOW[answer['how']]}" + (f", {what}" if answer["how"] != "stop" else "")
