# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks every server for a token, as a client would; documented in the module of the same name."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.verify import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.exchange import authority
from ansible_collections.magi.llama.plugins.module_utils._core.text import clean_text
from ansible_collections.magi.llama.plugins.module_utils._core.values import ANY_ADDRESS, is_loopback
from ansible_collections.magi.llama.plugins.module_utils._health.probe import TOKEN_REQUESTS, tokens_per_second
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.controller_requests import CONNECT_SECONDS, exchange
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.show import show

try:
    import httpx
except ImportError:
    httpx = None

MODULE = "magi.llama.verify"


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS)
        known = self.ask(MODULE, {"state_dir": arguments["state_dir"]}, task_vars)
        servers = known.get("deployed") or []
        if not servers:
            why = known.get("msg") or f"{arguments['state_dir']}/deployment.json lists none. Run site.yml first."
            raise AnsibleActionFail(as_called(f"No servers are deployed here: {why}"))
        asking = Asking(
            host=str(task_vars.get("ansible_host", task_vars["inventory_hostname"])),
            bind=arguments["host"],
            ports=range(arguments["port_range_start"], arguments["port_range_end"] + 1),
            key=arguments["api_key"],
            local=self._connection.transport == "local",
            request_from=arguments["request_from"],
        )
        answers = self._answers(servers, asking, arguments, task_vars)
        result["servers"] = sorted(answers, key=lambda answer: int(answer["port"]))
        failed = [answer for answer in answers if not answer["ok"]]
        for answer in result["servers"]:
            speed = f", {answer['tokens_per_second']:g} tokens/s" if answer["tokens_per_second"] is not None else ""
            outcome = f"ok in {answer['seconds']:.2f} s{speed}" if answer["ok"] else f"FAILED: {answer['error']}"
            show(task_vars, [f"{answer['name']} port {answer['port']}: {outcome}"], prefixed=True)
        result["msg"] = f"{len(answers) - len(failed)} of {len(answers)} servers answered with a token"
        note = {
            "failed": [answer["name"] for answer in failed],
            "refused": [answer["name"] for answer in failed if answer["own_fault"]],
            "answered": [answer["name"] for answer in answers if answer["ok"] and answer["name"] in known["refused"]],
        }
        # What the host measures it has noted itself.
        speeds = {
            answer["name"]: answer["tokens_per_second"]
            for answer in answers
            if answer["via"] == "controller" and answer["tokens_per_second"] is not None
        }
        if any(note.values()) or speeds:
            # Recorded even if this task fails.
            self.ask(MODULE, fill_in({"state_dir": arguments["state_dir"]}, speeds=speeds, **note), task_vars)
        if failed:
            result["failed"] = True
            result["msg"] += "".join(f"; {answer['name']}: {answer['error']}" for answer in failed)
        return result

    def _answers(
        self, servers: list[dict[str, Any]], asking: Asking, arguments: dict[str, Any], task_vars: dict[str, Any]
    ) -> list[dict[str, Any]]:
        asked, behind = who_asks(servers, asking)
        if asked and httpx is None:
            if asking.request_from == "controller":
                raise AnsibleActionFail(
                    "verify_from=controller needs httpx on the controller: pip install httpx, or set verify_from=host."
                )
            asked, behind = [], servers
        answers = asyncio.run(_ask_all(asked, asking.key, arguments["timeout"])) if asked else []
        if asking.request_from == "controller":
            answers += [_not_from_here(server, asking) for server in behind]
            behind = []
        elif asking.request_from == "auto":
            # A firewall or a bastion may be between.
            unreached = {answer["name"] for answer in answers if answer.get("unreached")}
            behind += [server for server, _address in asked if server["name"] in unreached]
            answers = [answer for answer in answers if answer["name"] not in unreached]
        for answer in answers:
            answer.pop("unreached", None)
        return answers + (self._ask_from_host(behind, arguments, task_vars) if behind else [])

    def _ask_from_host(
        self, servers: list[dict[str, Any]], arguments: dict[str, Any], task_vars: dict[str, Any]
    ) -> list[dict[str, Any]]:
        answer = self.ask(
            "wait_for_health",
            {
                "state_dir": arguments["state_dir"],
                "servers": [server["name"] for server in servers],
                "timeout": arguments["timeout"],
                "deep": True,
                "allow_degraded": True,
            },
            task_vars,
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
                "tokens_per_second": state["tokens_per_second"],
                "error": None if state["is_ready"] else state.get("detail") or state["state"],
                # In any other state the process is not running, not ready yet, or not the server's.
                "own_fault": state["state"] in ("hung", "unhealthy"),
            }
            for state in answer["servers"]
        ]


@dataclass(frozen=True)
class Asking:
    """What the inventory says of how servers are asked: nothing of it comes from the host.

    host is the host's address from here, bind the address that servers listen on, ports the role's range.
    """

    host: str
    bind: str
    ports: range
    key: str | None = None
    local: bool = False
    request_from: str = "auto"

    def address(self, server: dict[str, Any]) -> str | None:
        """The address of a server from here; None where the inventory has none, or its port is not of the range."""
        if server["port"] not in self.ports:
            return None
        listens = server.get("host", "")
        if is_loopback(listens) or listens in ANY_ADDRESS:
            here = "127.0.0.1" if self.local else self.host
            return here if self.local or listens in ANY_ADDRESS else None
        return listens if listens in (self.bind, self.host) else None


def who_asks(
    servers: list[dict[str, Any]], asking: Asking
) -> tuple[list[tuple[dict[str, Any], str]], list[dict[str, Any]]]:
    """The servers that are asked from here, each with its address, and those that only the host can ask."""
    asked, behind = [], []
    for server in servers:
        address = asking.address(server)
        # The host has the file with the keys, and sends none of them here.
        locked = server.get("api_key_file") and not asking.key
        # Those on demand make room for each other, so that they are asked one after another.
        alone = "on_demand" in server and asking.request_from == "auto"
        if address is None or locked or alone or asking.request_from == "host":
            behind.append(server)
        else:
            asked.append((server, address))
    return asked, behind


def _not_from_here(server: dict[str, Any], asking: Asking) -> dict[str, Any]:
    if server["port"] not in asking.ports:
        why = f"its port is not one of {asking.ports.start} to {asking.ports.stop - 1}"
    elif asking.address(server) is None:
        why = f"it listens on {server.get('host')}, which is not an address of the inventory"
    else:
        why = "it wants an API key: set verify_api_key"
    error = f"verify_from is controller, and only the host can ask this server: {why}"
    return {**_unanswered(server), "seconds": 0.0, "error": error}


def _unanswered(server: dict[str, Any]) -> dict[str, Any]:
    answer = {"name": server["name"], "port": server["port"], "via": "controller", "ok": False, "own_fault": False}
    return {**answer, "tokens_per_second": None}


async def _ask_all(servers: list[tuple[dict[str, Any], str]], key: str | None, timeout: float) -> list[dict[str, Any]]:
    # Where a firewall drops packets, the host is to be asked while there is time.
    timeouts = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
    async with httpx.AsyncClient(timeout=timeouts, trust_env=False, follow_redirects=False) as client:
        return list(await asyncio.gather(*(_ask(client, *server, key, timeout) for server in servers)))


async def _ask(client: Any, server: dict[str, Any], address: str, key: str | None, timeout: float) -> dict[str, Any]:
    """A few tokens, one embedding or one ranking, by the server's kind; timeout is for the whole exchange."""
    base = f"http://{authority(address, server['port'])}"
    path, body, field = TOKEN_REQUESTS.get(str(server.get("kind")), TOKEN_REQUESTS["model"])
    answer = _unanswered(server)
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            response = await exchange(client, base + path, body, key)
        code, text = response.status, response.text
        if code != 200:
            # A key that it does not take may be the wrong one.
            answer.update(error=f"{path} answered {code}: {clean_text(text, 200)}", own_fault=not key or code != 401)
        else:
            found = json.loads(text)
            answer.update(ok=isinstance(found, dict) and field in found, error=None)
            if answer["ok"]:
                answer["tokens_per_second"] = tokens_per_second(found)
            else:
                answer.update(error=f"{path} answered without {field}: {clean_text(text, 200)}", own_fault=True)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        answer.update(error=f"{base}: {type(error).__name__} {clean_text(str(error), 200)}", unreached=True)
    except (TimeoutError, httpx.ReadTimeout):
        answer.update(error=f"{base}{path}: no answer within {timeout:g} s", own_fault=True)
    except (httpx.HTTPError, ValueError, RecursionError) as error:
        answer["error"] = f"{base}{path}: {type(error).__name__} {clean_text(str(error), 200)}"
    return {**answer, "seconds": time.monotonic() - began}
