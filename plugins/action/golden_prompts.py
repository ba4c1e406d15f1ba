# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks golden prompts through the host; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.golden_prompts import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text
from ansible_collections.magi.llama.plugins.module_utils._health.gates import problem_lines
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.golden_prompts import read_prompts
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = check_arguments(self, ARGUMENTS)
        prompts = read_prompts(self._loader, arguments["path"]) if arguments["path"] else []
        given = {name: value for name, value in arguments.items() if name != "path" and value is not None}
        answer = self.ask("golden_prompts", fill_in(given, prompts=prompts), task_vars)
        if "servers" not in answer:
            return {**result, **answer}
        servers = answer["servers"]
        show(task_vars or {}, [_line(server) for server in servers], prefixed=True)
        found = problem_lines(servers)
        count = sum(server["prompts"] for server in servers)
        good = len(servers) - len({server["name"] for server in servers if server["problems"]})
        result = {**result, **answer, "msg": f"{good} of {len(servers)} servers passed, {count} prompts were asked"}
        if found:
            result["failed"] = True
            result["msg"] = visible_text("\n".join([*found, f"{result['msg']}."]))
        elif prompts and not count:
            result["msg"] += ": no server of this host has a model that a prompt is for"
            show(task_vars or {}, [result["msg"]], prefixed=True)
        return result


def _line(server: dict[str, Any]) -> str:
    before = f" ({server['reference']:g} before)" if server["reference"] is not None else ""
    speed = f", {server['tokens_per_second']:g} tokens/s{before}" if server["tokens_per_second"] is not None else ""
    bad = len({problem["prompt"] for problem in server["problems"] if problem["property"] != "tokens_per_second"})
    slow = ", TOO SLOW" if any(problem["property"] == "tokens_per_second" for problem in server["problems"]) else ""
    prompts = f"{server['prompts'] - bad} of {server['prompts']} prompts passed"
    return f"{server['name']} port {server['port']}: {prompts}{speed}{slow}"
