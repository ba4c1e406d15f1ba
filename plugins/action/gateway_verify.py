# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a gateway for every model, as a client does; documented in the module of the same name."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.gateway_verify import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.exchange import authority
from ansible_collections.magi.llama.plugins.module_utils._core.text import clean_text
from ansible_collections.magi.llama.plugins.module_utils._core.values import ANY_ADDRESS, is_loopback
from ansible_collections.magi.llama.plugins.module_utils._gateway.verification import (
    ASKED_AT_ONCE,
    Answer,
    Outcome,
    connection_fix,
    error_of,
    questions_of,
)
from ansible_collections.magi.llama.plugins.module_utils._health.probe import asked_address
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.controller_requests import CONNECT_SECONDS, exchange
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.show import show

try:
    import httpx
except ImportError:
    httpx = None

MODULE = "magi.llama.gateway_verify"


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS)
        gateway = Gateway(
            name=arguments["name"],
            address=str(task_vars.get("ansible_host", task_vars["inventory_hostname"])),
            listens=(arguments["host"], arguments["port"]),
            has_tls=arguments["tls"],
            url=arguments["url"] or None,
            local=self._connection.transport == "local",
        )
        by_host = gateway.asked_by_host(arguments["request_from"])
        # Before a key is sent anywhere.
        trust = None if by_host else trusted(gateway.asked_url(), arguments["ca_file"])
        sent = {key: arguments[key] for key in ("state_dir", "name", "host", "port", "timeout")}
        if by_host and arguments["api_key"]:
            sent["api_key"] = arguments["api_key"]
        known = self.ask(MODULE, fill_in(sent, asks=by_host), task_vars)
        if "routed" not in known:
            return {**result, **known}
        if not known["routed"]:
            raise AnsibleActionFail(as_called(f"The gateway {gateway.name} has no model yet: run site.yml first."))
        if by_host:
            url, answers = gateway.own_url(), known["answers"]
        else:
            url = gateway.asked_url()
            asking = Asking(url, arguments["api_key"], arguments["timeout"], trust)
            answers = asyncio.run(_ask_for_all(asking, known["routed"]))
        answers = [{**answer, "error": answer["error"] and as_called(answer["error"])} for answer in answers]
        result.update(url=url, models=sorted(answers, key=lambda answer: str(answer["name"])))
        show(
            task_vars,
            [f"{answer['name']} through {url}: {_told(answer)}" for answer in result["models"]],
            prefixed=True,
        )
        failed = [answer for answer in result["models"] if not answer["ok"]]
        good = len(answers) - len(failed)
        result["msg"] = f"{good} of {len(answers)} models answered through the gateway {gateway.name} ({url})"
        if failed:
            result["failed"] = True
            result["msg"] += "".join(f"; {answer['name']}: {answer['error']}" for answer in failed)
        return result


def _told(answer: dict[str, Any]) -> str:
    if not answer["ok"]:
        return f"FAILED: {answer['error']}"
    streamed = f", streamed in {answer['streamed_seconds']:.2f} s" if answer["streamed_seconds"] is not None else ""
    speed = f", {answer['tokens_per_second']:g} tokens/s" if answer["tokens_per_second"] is not None else ""
    return f"ok in {answer['seconds']:.2f} s{streamed}{speed}"


@dataclass(frozen=True)
class Gateway:
    """A gateway as the inventory has it: nothing of it comes from the host.

    address is the host's from here, listens what the gateway listens on, url what the user names instead.
    """

    name: str
    address: str
    listens: tuple[str, int]
    has_tls: bool = False
    url: str | None = None
    local: bool = False

    def asked_by_host(self, request_from: str) -> bool:
        """Whether its host asks it. Raises AnsibleActionFail where the one that the user wants cannot."""
        hidden = self.url is None and not self.local and is_loopback(self.listens[0])
        if request_from == "controller" and hidden:
            raise AnsibleActionFail(
                f"verify_from is controller, and only the host {self.name} reaches its gateway, as gateway_host is "
                f"{self.listens[0]} there: set verify_gateway_url to an address that reaches it from here, such as "
                "that of a tunnel, or verify_from=auto."
            )
        by_host = request_from == "host" or (request_from == "auto" and hidden)
        if by_host and self.has_tls:
            raise AnsibleActionFail(
                f"The gateway {self.name} has TLS, and its host asks it without: set verify_from=controller, and "
                "verify_gateway_url to an address that reaches it from here."
            )
        if not by_host and httpx is None:
            raise AnsibleActionFail(
                f"The controller needs httpx to ask the gateway {self.name}: pip install httpx"
                + ("." if self.has_tls else ", or set verify_from=host.")
            )
        return by_host

    def own_url(self) -> str:
        """Its address on its host."""
        return f"http://{authority(asked_address(self.listens[0]), self.listens[1])}"

    def asked_url(self) -> str:
        """Its address from here. Raises AnsibleActionFail for a URL that is not one of a gateway."""
        if self.url is None:
            host, port = self.listens
            address = (asked_address(host) if self.local else self.address) if host in ANY_ADDRESS else host
            return f"{'https' if self.has_tls else 'http'}://{authority(address, port)}"
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
            raise AnsibleActionFail(
                f'verify_gateway_url is "{clean_text(self.url, 200)}": it is the address of the gateway without a '
                "path, such as https://gateway.example.com:8443."
            )
        return self.url.rstrip("/")


def trusted(url: str, ca_file: str | None) -> ssl.SSLContext | None:
    """What a gateway's certificate is verified with, None without TLS. Raises AnsibleActionFail for an invalid file."""
    if not url.startswith("https:"):
        return None
    try:
        # Without a file those of the system, which httpx would not use.
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise AnsibleActionFail(
            f"verify_ca_file {ca_file} has no certificates that can be read: {error.strerror or error}. It is a file "
            "on the controller, in PEM."
        ) from error


@dataclass(frozen=True)
class Asking:
    """How the controller asks a gateway; timeout is for each answer, in seconds."""

    url: str
    key: str | None
    timeout: float
    trust: ssl.SSLContext | None


async def _ask_for_all(asking: Asking, models: list[dict[str, str]]) -> list[dict[str, Any]]:
    timeouts = httpx.Timeout(asking.timeout, connect=min(asking.timeout, CONNECT_SECONDS))
    at_once = asyncio.Semaphore(ASKED_AT_ONCE)
    verify = asking.trust if asking.trust is not None else True
    async with httpx.AsyncClient(timeout=timeouts, trust_env=False, follow_redirects=False, verify=verify) as client:

        async def ask(model: dict[str, str]) -> dict[str, Any]:
            async with at_once:
                return await _ask_for_one(client, asking, model)

        return list(await asyncio.gather(*(ask(model) for model in models)))


async def _ask_for_one(client: Any, asking: Asking, model: dict[str, str]) -> dict[str, Any]:
    outcome = Outcome(model["model_id"], "controller")
    for question in questions_of(model["model_id"], model["kind"]):
        began, text = time.monotonic(), ""
        where = f"{asking.url}{question.path}"
        try:
            async with asyncio.timeout(asking.timeout):
                response = await exchange(client, where, question.body, asking.key)
            text = response.text
            answer = Answer(response.status, text, response.headers.get("x-magi-model", ""))
            error = error_of(question, answer, has_key=bool(asking.key))
        except (httpx.ConnectError, httpx.ConnectTimeout) as failure:
            why = str(failure) or type(failure).__name__
            error = f"{asking.url}: {clean_text(why, 200)}. Fix: {connection_fix(why)}"
        except (TimeoutError, httpx.TimeoutException):
            error = f"{where}: no answer within {asking.timeout:g} s"
        except (httpx.HTTPError, ValueError, RecursionError) as failure:
            error = f"{where}: {type(failure).__name__} {clean_text(str(failure), 200)}"
        if not outcome.note(question, time.monotonic() - began, error, text):
            break
    return outcome.result
