# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks every server for a token, as a client would; documented in the module of the same name."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.verify import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.values import is_loopback
from ansible_collections.magi.llama.plugins.module_utils._health.probe import TOKEN_REQUESTS
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import first_key
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show

try:
    import httpx
except ImportError:
    httpx = None

MODULE = "magi.llama.verify"
ANY = ("0.0.0.0", "::", "")


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS)
        if httpx is None:
            raise AnsibleActionFail("verify needs httpx on the controller: pip install httpx.")
        known: dict[str, Any] = self.ask(MODULE, {"state_dir": arguments["state_dir"]}, task_vars)
        servers = known.get("deployed") or []
        if not servers:
            why = known.get("msg") or f"{arguments['state_dir']}/deployment.json lists none. Run site.yml first."
            raise AnsibleActionFail(f"No servers are deployed here: {why}")
        local = self._connection.transport == "local"
        host = str(task_vars.get("ansible_host", task_vars["inventory_hostname"]))
        asked, behind = who_asks(servers, "127.0.0.1" if local else host, arguments["api_key"], local)
        answers = asyncio.run(_ask_all(asked, arguments["timeout"]))
        if behind:
            # The host itself probes servers that listen on its loopback address, or whose keys only it can read.
            answers += self._ask_from_host(behind, arguments, task_vars)
        result["servers"] = sorted(answers, key=lambda answer: int(answer["port"]))
        failed = [answer for answer in answers if not answer["ok"]]
        for answer in result["servers"]:
            outcome = f"ok in {answer['seconds']:.2f} s" if answer["ok"] else f"FAILED: {answer['error']}"
            show(task_vars, [f"{answer['name']} port {answer['port']}: {outcome}"], always_prefixed=True)
        result["msg"] = f"{len(answers) - len(failed)} of {len(answers)} servers answered with a token"
        note = {
            "failed": [answer["name"] for answer in failed],
            "refused": [answer["name"] for answer in failed if answer["own_fault"]],
            "answered": [answer["name"] for answer in answers if answer["ok"] and answer["name"] in known["refused"]],
        }
        if any(note.values()):
            # Recorded even if this task fails.
            self.ask(MODULE, fill_in({"state_dir": arguments["state_dir"]}, **note), task_vars)
        if failed:
            result["failed"] = True
            result["msg"] += "".join(f"; {answer['name']}: {answer['error']}" for answer in failed)
        return result

    def _ask_from_host(
        self, servers: list[dict[str, Any]], arguments: dict[str, Any], task_vars: dict[str, Any]
    ) -> list[dict[str, Any]]:
        answer = self._execute_module(
            "magi.llama.wait_for_health",
            {
                "state_dir": arguments["state_dir"],
                "servers": [server["name"] for server in servers],
                "timeout": arguments["timeout"],
                "deep": True,
                "allow_degraded": True,
            },
            task_vars=task_vars,
        )
        if "servers" not in answer:
            raise AnsibleActionFail(answer.get("msg", "the host did not answer"))
        return [
            {
                "name": state["name"],
                "port": state["port"],
                "ok": state["is_ready"],
                "via": "host",
                "seconds": state["token_seconds"] or 0.0,
                "error": None if state["is_ready"] else state.get("detail") or state["state"],
                # In any other state the process is not running, not ready yet, or not the server's.
                "own_fault": state["state"] in ("hung", "unhealthy"),
            }
            for state in answer["servers"]
        ]


def who_asks(
    servers: list[dict[str, Any]], host: str, key: str | None, local: bool
) -> tuple[list[tuple[dict[str, Any], str, str | None]], list[dict[str, Any]]]:
    """Return the servers to probe from here, each with address and key, and those that the host has to probe.

    host is the host's address as seen from here; key is the key given by the user.
    """
    asked, behind = [], []
    for server in servers:
        path = server.get("api_key_file")
        found = key or (first_key(path) if local else None)
        if (is_loopback(server["host"]) and not local) or (path and not found):
            behind.append(server)
        else:
            asked.append((server, host if server["host"] in ANY else server["host"], found))
    return asked, behind


async def _ask_all(servers: list[tuple[dict[str, Any], str, str | None]], timeout: float) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
        return list(await asyncio.gather(*(_ask(client, *server) for server in servers)))


async def _ask(client: Any, server: dict[str, Any], address: str, key: str | None) -> dict[str, Any]:
    """Request one token, embedding or ranking, depending on the server's kind."""
    host = f"[{address}]" if ":" in address else address
    base = f"http://{host}:{server['port']}"
    path, body, field = TOKEN_REQUESTS.get(server["kind"], TOKEN_REQUESTS["model"])
    answer: dict[str, Any] = {
        **{"name": server["name"], "port": server["port"], "via": "controller"},
        **{"ok": False, "own_fault": False},
    }
    began = time.monotonic()
    try:
        response = await client.post(base + path, json=body, headers={"Authorization": f"Bearer {key}"} if key else {})
        response.raise_for_status()
        answer.update(ok=field in response.json(), error=None)
        if not answer["ok"]:
            answer.update(error=f"{path} answered without {field}: {response.text[:200]}", own_fault=True)
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        # A rejected key may be the user's mistake.
        answer.update(error=f"{path} answered {code}: {error.response.text[:200]}", own_fault=not key or code != 401)
    except httpx.ReadTimeout as error:
        answer.update(error=f"{base}{path}: {type(error).__name__} {error}", own_fault=True)
    except (httpx.HTTPError, ValueError) as error:
        answer["error"] = f"{base}{path}: {type(error).__name__} {error}"
    return {**answer, "seconds": time.monotonic() - began}
