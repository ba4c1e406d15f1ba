# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Whether the plan of a run is the one that was approved, and in what it differs.

What was approved is a hash, or the document of plan.yml, which shows the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core.errors import MagiError
from .differences import drift
from .plan_changes import plan_changes
from .plan_hash import SHOWN_DIGITS, fleet_hash, host_hash

Plan = Mapping[str, Any]
Plans = Mapping[str, Plan]

AGAIN = "Run plan.yml again, with the same hosts, and apply its new hash if that is what you want."
ONLY_HASH = (
    "A hash alone does not say what changed: let plan.yml write its document (-e output_file=plan.json), and "
    "apply that file (-e apply=plan.json)."
)
MOST_LINES = 20


class ApprovalError(MagiError):
    """What is to be applied is neither a hash nor the document of a plan."""


@dataclass(frozen=True)
class Approved:
    """A hash or the beginning of one, and the plans by host where the document was given."""

    digits: str
    plans: Plans | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the plan is the approved one, its hash now, and why nothing is applied, by host that was planned."""

    is_approved: bool
    hash: str | None
    errors: Mapping[str, str] = field(default_factory=dict)


def approved_document(document: Mapping[str, Any], path: str) -> Approved:
    """Return what a document of plan.yml approves. Raises ApprovalError where it is another one, or was edited."""
    hosts = document["hosts"]
    if document["kind"] != "plan":
        raise ApprovalError(f"apply: {path} is a document of {document['kind']}.yml, not one of plan.yml.")
    if not document.get("hash"):
        missing = [name for name, host in hosts.items() if "hash" not in host or "error" in host]
        raise ApprovalError(
            f"apply: {path} has no hash, as there is no plan for {', '.join(missing)}. Run plan.yml again when that is "
            "fixed, or leave these hosts out with --limit."
        )
    edited = [name for name, host in hosts.items() if host_hash(host) != host["hash"]]
    if edited or fleet_hash(hosts) != document["hash"]:
        where = f" for {', '.join(edited)}" if edited else ""
        raise ApprovalError(f"apply: {path} is not as plan.yml wrote it{where}: run plan.yml again.")
    return Approved(document["hash"], hosts)


def compare(approved: Approved, now: Plans, hosts: Sequence[str]) -> Verdict:
    """Return whether the plans of all hosts of a run are those that were approved; now has those that were made."""
    found = fleet_hash({name: now.get(name, {}) for name in hosts})
    if found and found.startswith(approved.digits):
        return Verdict(True, found)
    digits = approved.digits[:SHOWN_DIGITS]
    changed: Mapping[str, Sequence[str]] = {}
    if approved.plans is not None:
        changed = _changed(approved.plans, now, hosts)
        first = (
            f"This is no longer the plan {digits}: {', '.join(changed)} {'differ' if len(changed) > 1 else 'differs'}."
        )
    elif found:
        changed = {name: _to_do(plan) for name, plan in now.items()}
        first = f"This is no longer the plan {digits}, it is {found[:SHOWN_DIGITS]} now. {ONLY_HASH} Now it would be:"
    else:
        missing = [name for name in hosts if name not in now]
        first = f"This cannot be compared with the plan {digits}, as there is none for {', '.join(missing)} now."
    last = f"Nothing was changed on any host. {AGAIN}"
    lines = {name: _bounded([f"{name}: {text}" for text in texts]) for name, texts in changed.items()}
    # Each host has what differs on it; if nothing does, all have what differs on others.
    has_own = any(name in lines for name in now)
    everything = [line for texts in lines.values() for line in texts]
    return Verdict(
        False,
        found,
        {name: "\n".join([first, *(lines.get(name, ()) if has_own else everything), last]) for name in now},
    )


def host_error(approved: Plan, now: Plan) -> str | None:
    """Return why a host's plan is not the approved one any more, looked at under its lock; None if it is.

    How other hosts serve meanwhile is left out, as earlier batches of the run change that. Where the approved plan was
    made without llama-server or keys, which the run has installed by now, only what does not depend on them counts.
    """
    parts = _outline if _is_preview(approved) else _alone
    before, after = parts(approved), parts(now)
    if host_hash(before) == host_hash(after):
        return None
    lines = _bounded(plan_changes(before, after)) or ["  It differs."]
    what = "The plan of this host changed after it was compared with the one to apply."
    return "\n".join([what, *lines, f"Nothing was started or stopped on this host. {AGAIN}"])


def _changed(plans: Plans, now: Plans, hosts: Sequence[str]) -> dict[str, list[str]]:
    """What differs, by host; hosts are those of this run."""
    changed = {name: ["the plan has this host, this run has not"] for name in plans if name not in hosts}
    for name in hosts:
        if name not in plans:
            changed[name] = ["this run has this host, the plan has not"]
        elif name not in now:
            changed[name] = ["it could not be planned now"]
        elif now[name]["hash"] != plans[name]["hash"]:
            changed[name] = plan_changes(plans[name], now[name]) or ["it differs"]
    return changed


def _to_do(plan: Plan) -> list[str]:
    return [f"{server} {text}" for server, text in drift(plan, ()).items()] or ["nothing is to be done"]


def _bounded(lines: Sequence[str]) -> list[str]:
    more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return [f"  {line}" for line in [*lines[:MOST_LINES], *more]]


def _is_preview(plan: Plan) -> bool:
    """Whether a plan was made before there was a llama-server, or the keys that the run generates."""
    return any(
        not server["env"].get("MAGI_LLAMA_RUNTIME") or (server.get("api_key_file") and not server.get("api_key_stamp"))
        for server in plan["servers"]
        if server["action"] != "stop"
    )


def _alone(plan: Plan) -> dict[str, Any]:
    """A host's plan without what depends on other hosts: the steps of the change, and its stand-ins."""
    servers = [
        {key: value for key, value in server.items() if key != "change"}
        for server in plan["servers"]
        if "stands_in_for" not in server
    ]
    return {**{key: value for key, value in plan.items() if key != "waves"}, "servers": servers}


_OUTLINE = ("name", "model_id", "action", "port", "instance", "model_stamp", "stop_timeout")


def _outline(plan: Plan) -> dict[str, Any]:
    """What a host's plan says without llama-server: which servers of which files, at which ports."""
    servers = [
        {
            **{key: server.get(key) for key in _OUTLINE},
            "argv": [],
            "env": {"MAGI_LLAMA_MODEL": server.get("env", {}).get("MAGI_LLAMA_MODEL", "")},
        }
        for server in plan["servers"]
        if "stands_in_for" not in server
    ]
    return {"profile": plan["profile"], "start": plan["start"], "servers": servers}
