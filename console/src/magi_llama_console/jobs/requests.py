# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be requested: verbs and variables, validated against what there is, and the command that they become.

Nothing here is given to a shell, and names are only those of the inventory: a --limit of Ansible can also be a file or
a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Each verb is a playbook of the collection, with the variables that it takes.
VERBS: Mapping[str, frozenset[str]] = {
    "site": frozenset({"profile", "limit", "check", "allow_downtime", "apply"}),
    "plan": frozenset({"profile", "limit"}),
    "start": frozenset({"servers", "limit", "check"}),
    "stop": frozenset({"servers", "limit", "check"}),
    "restart": frozenset({"servers", "limit", "check", "allow_downtime"}),
    "status": frozenset({"limit", "output_log"}),
    "verify": frozenset({"limit"}),
    "rollout": frozenset({"profile", "limit", "check", "allow_downtime"}),
    "rollback": frozenset({"limit", "check"}),
    "scan": frozenset({"profile", "limit", "check"}),
}
# They change nothing on a host.
LOOKING = frozenset({"plan", "status", "verify"})
# Their playbooks write a result document.
WITH_RESULT = frozenset({"site", "plan", "status", "verify", "rollout", "scan"})
NEED_SERVERS = frozenset({"start", "stop", "restart"})
# The same as the collection's for profiles and servers; a name never begins with a dash.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HASH = re.compile(r"[0-9a-f]{8,64}")
ALL = "all"


class RequestRefused(Exception):
    """A request that cannot be: the key, what is wrong with it, and the names that there are."""

    def __init__(self, key: str, detail: str, name: str = "", names: Iterable[str] = (), fix: str = "") -> None:
        super().__init__(detail)
        self.key, self.detail, self.name, self.names, self.fix = key, detail, name, tuple(names), fix


@dataclass(frozen=True, slots=True)
class Known:
    """What there is at the time of a request."""

    # Hosts that run servers, in the inventory's order.
    hosts: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    profiles: frozenset[str] = frozenset()
    # Names of the deployed servers by host; a host of which nothing is known is missing.
    servers: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be run. variables has only keys that were given; hosts are those that it may change."""

    verb: str
    variables: Mapping[str, Any]
    hosts: tuple[str, ...]


def validate(verb: str, variables: Mapping[str, Any], known: Known) -> Request:
    """The request of a verb. limit and servers are lists of names. Raises RequestRefused."""
    if verb not in VERBS:
        raise RequestRefused("verb", f"There is no verb {verb!r}.", verb, VERBS)
    given = given_of(variables)
    if extra := given.keys() - VERBS[verb]:
        name = sorted(extra)[0]
        raise RequestRefused(name, f"{verb} does not take {name}.", fix=f"It takes {', '.join(sorted(VERBS[verb]))}.")
    hosts = resolve_limit(given.get("limit", ()), known)
    if "profile" in given:
        _one_of("profile", given["profile"], PROFILE, known.profiles)
    if "apply" in given and not HASH.fullmatch(given["apply"]):
        raise RequestRefused(
            "apply", "apply is not the hash of a plan.", fix="Use the hash that GET /api/v1/plans gave."
        )
    if verb in NEED_SERVERS and not given.get("servers"):
        raise RequestRefused("servers", f"{verb} needs servers.", fix=f'Name them, or ["{ALL}"].')
    for key in ("servers", "output_log"):
        if key in given:
            _check_servers(key, given[key], hosts, known)
    return Request(verb, given, hosts)


def given_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a request that say something."""
    return {name: value for name, value in variables.items() if value not in (None, (), [], False, "")}


def resolve_limit(limit: Sequence[str], known: Known) -> tuple[str, ...]:
    """The hosts with servers that hosts' and groups' names mean; all of them for none. Raises RequestRefused."""
    if not limit:
        return known.hosts
    wanted: set[str] = set()
    for name in limit:
        _one_of("limit", name, NAME, [*known.hosts, *known.groups])
        wanted |= {name} if name in known.hosts else set(known.groups[name])
    hosts = tuple(host for host in known.hosts if host in wanted)
    if not hosts:
        raise RequestRefused(
            "limit", f"None of {', '.join(limit)} runs servers.", fix="GET /api/v1/hosts lists those that do."
        )
    return hosts


def _check_servers(key: str, names: Sequence[str], hosts: Sequence[str], known: Known) -> None:
    is_complete = all(host in known.servers for host in hosts)
    deployed = {ALL, *(name for host in hosts for name in known.servers.get(host, ()))}
    for name in names:
        if is_complete:
            _one_of(key, name, NAME, deployed)
        elif not NAME.fullmatch(name):
            raise RequestRefused(key, f"{name!r} is not a name of a server.")


def _one_of(key: str, name: str, pattern: re.Pattern[str], names: Iterable[str]) -> None:
    if not pattern.fullmatch(name) or name not in names:
        raise RequestRefused(key, f"{key}: there is no {name!r}.", name, sorted(names))


def command(
    request: Request, *, program: Path, inventory: Path, checkout: Path | None, folder: Path
) -> tuple[list[str], dict[str, Any]]:
    """The argv of a request, and the content of the file with its extra variables (folder/vars.json)."""
    variables = request.variables
    playbook = f"magi.llama.{request.verb}" if checkout is None else str(checkout / f"playbooks/{request.verb}.yml")
    argv = [str(program), "-i", str(inventory), "-e", f"@{folder / 'vars.json'}"]
    # Always: the inventory may have another host by the time it runs, which no job has locked.
    if request.hosts:
        argv += ["--limit", ",".join(request.hosts)]
    if variables.get("check"):
        argv.append("--check")
    extra: dict[str, Any] = {
        name: variables[name] for name in ("profile", "allow_downtime", "apply") if name in variables
    }
    for name in ("servers", "output_log"):
        if name in variables:
            extra[name] = ",".join(variables[name])
    if request.verb in WITH_RESULT:
        extra["output_file"] = str(folder / "result.json")
    return [*argv, playbook], extra
