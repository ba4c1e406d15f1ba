# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What a rollout reports: each host's state, and the table and JSON at the end."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from .._core.documents import NULL, NUMBER, Document, DocumentError, Fields, Map, check
from .._core.stand_ins import without_stand_ins
from .._core.text import redact
from .report import format_seconds, table

# A host is untouched until its turn. One that was being updated when the run ended is counted as failed.
STATES = ("updated", "unchanged", "planned", "failed", "untouched")
DONE = {"start": "started", "restart": "restarted", "stop": "stopped"}
# Variables that say how to reach a host, and hold no secret. The path of a secret is not secret.
_CONNECTION = frozenset(
    f"ansible_{name}"
    for name in (
        *("host", "port", "user", "connection", "ssh_private_key_file", "private_key_file", "python_interpreter"),
        *("become", "become_user", "become_method", "become_password_file"),
    )
)

_SECONDS = (*NUMBER, NULL)
_COUNT = (int, NULL)
_TEXT = (str, NULL)
_HOST = Fields(
    {
        "state": re.compile("|".join(STATES)),
        "seconds": _SECONDS,
        "total_servers": _COUNT,
        "ready_servers": _COUNT,
        "actions": Map(int),
        "task": _TEXT,
        "error": _TEXT,
        "rollback": _TEXT,
    }
)
# As a fact, while the rollout runs.
_RECORDED = Fields(
    {**_HOST.required, "state": re.compile("|".join((*STATES, "updating")))},
    {"began": NUMBER, "is_unreachable": bool},
)
ROLLOUT = Document(
    "rollout",
    1,
    Fields(
        {
            "collection_version": str,
            "kind": re.compile("rollout"),
            "is_complete": bool,
            **dict.fromkeys(STATES, int),
            "seconds": NUMBER,
            "hosts": Map(_HOST),
        }
    ),
)

Host = Mapping[str, Any]


def recorded(value: Any) -> dict[str, Any]:
    """What the fact llama_rollout says of a host; a failed one where a task on the host has replaced the fact."""
    try:
        check(value, _RECORDED, "llama_rollout")
    except DocumentError as error:
        what = f"A task on the host has replaced the fact llama_rollout: {error}."
        return {**begin(), "state": "failed", "error": what}
    return dict(value)


def begin() -> dict[str, Any]:
    """The initial entry of a host: nothing was done to it yet."""
    return {
        "state": "untouched",
        "seconds": None,
        "total_servers": None,
        "ready_servers": None,
        "actions": {},
        "task": None,
        "error": None,
        "rollback": None,
    }


def updated(host: Host, plan: Mapping[str, Any], health: Mapping[str, Any], check: bool) -> dict[str, Any]:
    """The entry of a host that was updated successfully; in check mode, of one that would be changed."""
    actions = actions_of(plan)
    state = "unchanged" if not actions else "planned" if check else "updated"
    return {**host, "state": state, "actions": actions, **readiness(health)}


def failed(
    host: Host, plan: Mapping[str, Any], health: Mapping[str, Any], task: str, error: str, rollback: str | None
) -> dict[str, Any]:
    """The entry of a host at which the rollout stops; rollback is the command that undoes the changes, if any."""
    found = {"actions": actions_of(plan), **readiness(health)} if rollback else {}
    return {**host, **found, "state": "failed", "task": task, "error": error, "rollback": rollback}


def is_closed(hosts: Iterable[Host], max_unreachable: int) -> bool:
    """Whether no further host is to be touched: one has failed, or more than some were out of reach, and unchanged."""
    bad = [host for host in hosts if host["state"] in ("failed", "updating")]
    unreachable = [host for host in bad if host.get("is_unreachable") and host["state"] == "failed"]
    return len(unreachable) < len(bad) or len(unreachable) > max_unreachable


def changed_hosts(result: Mapping[str, Any]) -> list[str]:
    """Return the hosts that a rollout has changed, of its document: those that a rollback returns."""
    return [
        name
        for name, host in result["hosts"].items()
        if host["state"] == "updated" or (host["state"] == "failed" and host["rollback"] is not None)
    ]


def not_as_planned(plan: Mapping[str, Any], running: Mapping[str, str]) -> list[str]:
    """The servers that a plan starts, restarts or stops but that do not run as planned.

    running are the revisions of the servers' processes.
    """
    wrong = []
    for server in without_stand_ins(plan.get("servers", ())):
        # A kept server whose model is gone may run with an older launch config.
        wanted = None if server["action"] == "stop" else server.get("revision")
        if server["action"] != "keep" and running.get(server["name"]) != wanted:
            wrong.append(str(server["name"]))
    return wrong


def actions_of(plan: Mapping[str, Any]) -> dict[str, int]:
    """How many servers a plan starts, restarts and stops."""
    counts = Counter(str(server["action"]) for server in without_stand_ins(plan.get("servers", ())))
    return {action: counts[action] for action in DONE if counts[action]}


def readiness(health: Mapping[str, Any]) -> dict[str, Any]:
    """The number of servers and of ready servers, if they were probed."""
    if "servers" not in health:
        return {"total_servers": None, "ready_servers": None}
    return {"total_servers": len(health["servers"]), "ready_servers": health["ready"]}


def failure_text(name: str, host: Host) -> str:
    """The message for a failed host: where and why it failed, and how to roll it back."""
    # The failed task has already shown the rest.
    at = f' at the task "{host["task"]}"' if host["task"] else ""
    # Neither is known where the connection was lost during its update.
    error = "the connection to the host was lost" if host["error"] is None else host["error"]
    where = f"{name} failed{at}: {(error.splitlines() or [''])[0]}".rstrip()
    if not host["rollback"]:
        return f"{where}\nNothing was changed. Fix the cause and run the rollout again."
    return (
        f"{where}\nThe rollout stopped here. Fix the cause and run it again, or return {name} to what it ran before:\n"
        f"  {host['rollback']}"
    )


def summary(hosts: Mapping[str, Host], seconds: float) -> dict[str, Any]:
    """The result of a rollout; hosts are in the order of the rollout."""
    entries = {
        name: {**{key: host[key] for key in begin()}, "state": _final(host["state"])} for name, host in hosts.items()
    }
    counts = Counter(entry["state"] for entry in entries.values())
    return ROLLOUT.stamp(
        {
            "kind": ROLLOUT.name,
            "is_complete": not counts["failed"] and not counts["untouched"],
            **{state: counts[state] for state in STATES},
            "seconds": round(seconds, 1),
            "hosts": entries,
        }
    )


def _final(state: str) -> str:
    # Its update neither succeeded nor reached rescue: the connection to the host was lost.
    return "failed" if state == "updating" else state


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The summary as a table."""
    counts = ", ".join(f"{result[state]} {state}" for state in STATES if result[state]) or "no hosts"
    rows = [
        [name, entry["state"], entry["seconds"], _ready(entry), _actions(entry)]
        for name, entry in result["hosts"].items()
    ]
    return [
        f"rollout: {counts}, {format_seconds(result['seconds'])} in all",
        *table(("HOST", "STATE", "SECONDS", "SERVERS READY", "SERVERS"), rows),
    ]


def _ready(entry: Host) -> str:
    return "-" if entry["total_servers"] is None else f"{entry['ready_servers']} of {entry['total_servers']}"


def _actions(entry: Host) -> str:
    would = entry["state"] == "planned"
    listed = [f"{count} {f'to {action}' if would else DONE[action]}" for action, count in entry["actions"].items()]
    return ", ".join(listed) or "-"


def rollback_command(
    playbook: str,
    inventories: Sequence[str],
    host: str,
    extra_vars: Sequence[Any],
    options: Sequence[str] = (),
    variables: Container[str] = (),
) -> str:
    """The command line that rolls a host back.

    extra_vars are those of the rollout, each key=value, @file or a mapping. Only files, variables that say how to reach
    a host, and those in variables are passed on, without passwords in URLs. options say how to reach the hosts.
    """
    words = ["ansible-playbook"]
    for inventory in inventories:
        words += ["-i", inventory]
    words += [playbook, "--limit", host, *options]
    for given in extra_vars:
        if isinstance(given, Mapping):
            kept = {key: _redacted(value) for key, value in given.items() if key in _CONNECTION or key in variables}
            words += ["-e", json.dumps(kept)] if kept else []
        elif given.startswith("@"):
            words += ["-e", given]
        else:
            key = given.partition("=")[0].strip()
            words += ["-e", redact(given)] if key in _CONNECTION or key in variables else []
    return shlex.join(words)


def _redacted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _redacted(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(entry) for entry in value]
    return redact(value) if isinstance(value, str) else value
