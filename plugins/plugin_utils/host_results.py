# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a playbook has found on each host, by what its tasks have registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._output import fleet, rollout_summary
from ansible_collections.magi.llama.plugins.module_utils._plan.plan_hash import host_hash
from ansible_collections.magi.llama.plugins.plugin_utils.show import BEGUN

# Set by tasks/record_failure.yml.
FAILURE = "__playbook_failure"
# Registered by tasks/approve.yml.
APPROVAL = "__llama_approval"
# Prefixes of the variables that the roles' tasks register.
REGISTERED = ("__servers_", "__runtime_", "__registry_", "__gateway_verified")

HostVars = Mapping[str, Any]


def host_result(playbook: str, host_vars: HostVars) -> dict[str, Any]:
    """Return the host's part of the document; with task and error if the playbook failed there."""
    try:
        found = dict(RESULTS[playbook](host_vars))
    except KeyError:
        # Earlier tasks failed, were skipped, or are excluded by tags.
        found = {}
    failed = failure(host_vars)
    if playbook in LOCATED:
        name = str(host_vars["inventory_hostname"])
        found = fleet.located(found, name, str(host_vars.get("ansible_host") or name))
    return {**found, "task": failed["task"], "error": failed["error"]} if failed else found


def host_state(host_vars: HostVars) -> str:
    """How a run ended on a host: ok, failed, unreachable or not begun."""
    failed = failure(host_vars)
    if failed:
        return "unreachable" if failed["unreachable"] else "failed"
    return "ok" if BEGUN in host_vars else "not begun"


def failure(host_vars: HostVars) -> dict[str, Any] | None:
    """{"task", "error", "unreachable"} of a host on which a task failed, or that was unreachable."""
    lost = unreachable(host_vars)
    recorded = host_vars.get(FAILURE)
    if lost is not None:
        # A later failure is only a consequence.
        return {"task": None, "error": lost, "unreachable": True}
    return {**recorded, "unreachable": False} if recorded else None


def unreachable(host_vars: HostVars) -> str | None:
    """Return why a host was unreachable for one of the tasks; None if it was not."""
    for name in host_vars:
        if str(name).startswith(REGISTERED):
            value = host_vars[name]
            if isinstance(value, Mapping) and value.get("unreachable"):
                return str(value.get("msg") or "The connection to the host was lost.")
    return None


def _status(host_vars: HostVars) -> Mapping[str, Any]:
    status: Mapping[str, Any] = host_vars["__servers_info"]["status"]
    return status


def _plan(host_vars: HostVars) -> Mapping[str, Any]:
    # Not the fact, which may be from an earlier run.
    plan: Mapping[str, Any] = host_vars["__servers_planned"]["ansible_facts"]["llama_plan"]
    return plan


def _hashed_plan(host_vars: HostVars) -> Mapping[str, Any]:
    """A host's plan with the digests of its launch configs and its hash; without both where a step was left out."""
    plan, configs = _plan(host_vars), (host_vars.get("__servers_configs") or {}).get("configs")
    if configs is None:
        return plan
    whole = {**plan, "configs": configs}
    return {**whole, "hash": host_hash(whole)}


def _scan(host_vars: HostVars) -> Mapping[str, Any]:
    registry: Mapping[str, Any] = host_vars["__registry_scan"]["ansible_facts"]["llama_registry"]
    return registry


def _verify(host_vars: HostVars) -> Mapping[str, Any]:
    if "models" in host_vars.get("__gateway_verified", {}):
        url, models = host_vars["__gateway_verified"]["url"], host_vars["__gateway_verified"]["models"]
        answered = sum(bool(model["ok"]) for model in models)
        return {"url": url, "total_models": len(models), "answered_models": answered, "models": models}
    servers = host_vars["__servers_verified"]["servers"]
    answered = sum(bool(server["ok"]) for server in servers)
    return {"total_servers": len(servers), "answered_servers": answered, "servers": servers}


def _site(host_vars: HostVars) -> Mapping[str, Any]:
    if not (host_vars.get(APPROVAL) or {}).get("matches", True):
        # It has another plan than the one to be applied, of which nothing was done.
        return {}
    plan = _plan(host_vars)
    health = {**host_vars.get("__servers_kept_health", {}), **host_vars.get("__servers_health", {})}
    return {
        "profile": plan["profile"],
        **rollout_summary.readiness(health),
        "actions": rollout_summary.actions_of(plan),
        "servers": fleet.planned_servers(plan, health),
    }


# The playbooks whose documents say where servers are reached.
LOCATED = ("status", "site")
RESULTS: dict[str, Callable[[HostVars], Mapping[str, Any]]] = {
    "status": _status,
    "plan": _hashed_plan,
    "scan": _scan,
    "verify": _verify,
    "site": _site,
}
