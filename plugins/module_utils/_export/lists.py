# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Lists of the planned servers, for programs that ask them, watch them, or start them one at a time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from .._core.argv import flag_value
from .._core.exchange import authority
from .._core.values import ANY_ADDRESS, is_loopback
from .._gateway.fleet import proxy_name
from .workloads import ExportError, Settings, Workload

KEY_VARIABLE = "LLAMA_API_KEY"
# What LiteLLM calls the kinds of models. It has no reranker that is reached as llama-server is.
MODES = {"model": "chat", "embedding": "embedding"}
# The least that llama-swap takes, in seconds.
SWAP_LEAST_SECONDS = 15


def address_of(one: Workload) -> str:
    """Where clients reach a server: its host's address, or the one that it listens on."""
    host = one.address if one.listens in ANY_ADDRESS else one.listens
    return authority(host, one.port)


def reach_notes(workloads: Sequence[Workload], _settings: Settings) -> list[str]:
    """A warning about servers that only their own host reaches."""
    hosts = sorted({one.host for one in workloads if is_loopback(one.listens)})
    if not hosts:
        return []
    return [
        f"Servers of {', '.join(hosts)} listen on a loopback address, so only programs there reach them: set "
        "servers_host to the host's own address, and servers_api_key_file with it, or use a gateway."
    ]


def endpoints_files(workloads: Sequence[Workload], _settings: Settings) -> dict[str, Any]:
    found = [
        {
            "host": one.host,
            "server": one.name,
            "model": one.model_id,
            "display_name": one.display_name,
            "kind": one.kind,
            "tier": one.tier or None,
            "url": f"http://{address_of(one)}",
            "slots": one.slots,
            "needs_api_key": bool(one.key_file),
        }
        for one in workloads
    ]
    return {"endpoints.json": {"schema_version": 1, "endpoints": found}}


def file_sd_files(workloads: Sequence[Workload], _settings: Settings) -> dict[str, Any]:
    """Targets for Prometheus, a group for each server."""
    groups = [
        {
            "targets": [address_of(one)],
            "labels": {
                "host": one.host,
                "server": one.name,
                "model": one.model_id,
                "tier": one.tier,
                "profile": one.profile,
                "generation": str(one.generation),
            },
        }
        for one in workloads
        if "--metrics" in one.argv
    ]
    return {"llama-servers.json": groups}


def file_sd_notes(workloads: Sequence[Workload], settings: Settings) -> list[str]:
    silent = [f"{one.host}: {one.name}" for one in workloads if "--metrics" not in one.argv]
    texts = [f"{', '.join(silent)}: left out, as the profile has metrics off."] if silent else []
    return [*texts, *reach_notes(workloads, settings)]


def litellm_files(workloads: Sequence[Workload], _settings: Settings) -> dict[str, Any]:
    """A configuration of LiteLLM's proxy; it balances between servers of one model."""
    models = [
        {
            "model_name": one.model_id,
            "litellm_params": {
                "model": f"openai/{one.model_id}",
                "api_base": f"http://{address_of(one)}/v1",
                # It wants one in any case.
                "api_key": f"os.environ/{KEY_VARIABLE}" if one.key_file else "none",
                "max_parallel_requests": one.slots,
            },
            "model_info": {"id": f"{one.host}/{one.name}", "mode": MODES[one.kind]},
        }
        for one in workloads
        if one.kind in MODES
    ]
    return {"litellm.yaml": {"model_list": models, "router_settings": {"routing_strategy": "least-busy"}}}


def litellm_notes(workloads: Sequence[Workload], settings: Settings) -> list[str]:
    others = [f"{one.host}: {one.name}" for one in workloads if one.kind not in MODES]
    texts = [f"{', '.join(others)}: left out, as LiteLLM has no such model behind llama-server."] if others else []
    return [*texts, *reach_notes(workloads, settings)]


def llama_swap_files(workloads: Sequence[Workload], _settings: Settings) -> dict[str, Any]:
    """A configuration of llama-swap for each host, which starts the host's own llama-server as planned."""
    by_host: dict[str, list[Workload]] = {}
    for one in workloads:
        by_host.setdefault(one.host, []).append(one)
    return {f"{proxy_name(host)}/llama-swap.yaml": _swap(own) for host, own in by_host.items()}


def _swap(workloads: Sequence[Workload]) -> dict[str, Any]:
    return {
        "healthCheckTimeout": max(SWAP_LEAST_SECONDS, *(one.start_seconds for one in workloads)),
        "models": {one.name: _swapped(one) for one in workloads},
        # By the plan all of them fit, so none has to be stopped for another.
        "groups": {"planned": {"swap": False, "exclusive": False, "members": [one.name for one in workloads]}},
    }


def _swapped(one: Workload) -> dict[str, Any]:
    for word in one.planned_argv:
        if "${" in word or "\n" in word:
            raise ExportError(
                f'{one.host}: {one.name} has "{word:.60}" on its command line, where llama-swap replaces '
                "${…} and may leave out lines. Nothing was written. Put the text into a file, as with "
                "chat_template_file."
            )
    host, port = (flag_value(one.planned_argv, flag) or "" for flag in ("--host", "--port"))
    reached = "127.0.0.1" if host in ANY_ADDRESS else host
    return {
        "cmd": shlex.join(one.planned_argv),
        "proxy": f"http://{authority(reached, int(port or one.port))}",
        "checkEndpoint": "/health",
        "name": one.display_name[:128],
        "useModelName": one.model_id,
        "concurrencyLimit": one.slots,
        "unloadTimeout": one.stop_seconds,
        "env": [f"{name}={value}" for name, value in one.env],
    }
