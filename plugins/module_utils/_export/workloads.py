# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The servers of plans as containers: what every format is rendered from."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .._core.argv import PATH_FLAGS, WRITE_FILE_FLAG, WRITE_FLAGS, flag_value, flag_values
from .._core.errors import MagiError
from .._core.links import is_below
from .._gateway.fleet import proxy_name, slots_of
from .._gateway.watch import patience_of
from .gpus import gpus_of
from .parts import Build, Part, build_of, parts_of

# In the containers: where the API key is, if there is one, and the user who runs everything.
KEY_FILE = "/run/secrets/llama/api-key"
USER_ID = 10001
ACCESS_MODES = ("ReadWriteMany", "ReadOnlyMany", "ReadWriteOnce")
# What `make images` builds, for the CPU.
DEFAULT_IMAGE = "magi-llama/llama-server:latest"
# The plan's own environment marks a process as one of the host's deployment, which a container is not.
MARK = "MAGI_LLAMA_"
_IMAGE = re.compile(r"[a-z0-9][\w.:/@-]{0,254}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class ExportError(MagiError):
    """A plan, a variable or a folder that nothing can be exported from or to. Nothing was written."""


@dataclass(frozen=True)
class Settings:
    """What the plan does not say: images, the program in the first one, names of the claims and of the secret.

    access_mode is the claims': one that they can be filled with, on all nodes by default.
    """

    image: str
    gateway_image: str
    binary: str
    claim: str
    secret: str
    access_mode: str = ACCESS_MODES[0]


@dataclass(frozen=True)
class HostPlan:
    """A host's plan as planned; address as other hosts reach it, roots are the folders that its models are in.

    busy is how many of its servers are expected to compute at once, None for all; real has the paths without links of
    the files in its command lines and of the roots, by the path that they have there. registry and runtime are the
    facts llama_registry and llama_runtime.
    """

    name: str
    address: str
    plan: Mapping[str, Any]
    roots: Sequence[str]
    busy: int | None = None
    real: Mapping[str, str] = field(default_factory=dict)
    registry: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """A server as a container. argv is the plan's with the program, address and key file of the container.

    folders are read-only and at the same path as on the host, writable are folders that it writes in; memory in bytes,
    time in seconds. gpus is their number, gpu_numbers are the host's; gpu_fault says why a container cannot have them.
    strays are files that links lead to, outside of the folders, each behind its link. parts are the model and what goes
    with it, the model first; build is None where the host's llama-server is not known.
    """

    host: str
    address: str
    name: str
    model_id: str
    display_name: str
    tier: str
    kind: str
    listens: str
    port: int
    argv: tuple[str, ...]
    planned_argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]
    strays: tuple[tuple[str, str], ...]
    writable: tuple[str, ...]
    weights_bytes: int
    request_bytes: int
    limit_bytes: int
    cpu_millis: int
    gpus: int
    gpu_numbers: tuple[int, ...]
    gpu_names: tuple[str, ...]
    gpu_fault: str
    slots: int
    patience_seconds: int
    start_seconds: int
    check_seconds: int
    stop_seconds: int
    revision: str
    profile: str
    generation: int
    key_file: str
    parts: tuple[Part, ...] = ()
    build: Build | None = None
    replicas: int = 1


def check_settings(settings: Settings) -> None:
    """Raise ExportError with all that is wrong in the variables."""
    wrong = [
        f'{variable} is "{value}": set it to the name of an image, such as {example}.'
        for variable, value, example in (
            ("export_image", settings.image, DEFAULT_IMAGE),
            ("export_gateway_image", settings.gateway_image, "haproxy:3.2"),
        )
        if not _IMAGE.fullmatch(value)
    ]
    wrong += [
        f'{variable} is "{value}": set it to a name of lower-case letters, digits, dots and hyphens, such as {example}.'
        for variable, value, example in (
            ("export_claim", settings.claim, "models"),
            ("export_secret", settings.secret, "llama-api-key"),
        )
        if not _NAME.fullmatch(value)
    ]
    if wrong:
        raise ExportError(" ".join(wrong))


def workloads_of(hosts: Sequence[HostPlan], settings: Settings) -> tuple[list[Workload], list[str]]:
    """Return the servers that the hosts should have, by host and name, and warnings. Raises ExportError."""
    check_settings(settings)
    found, warnings = [], []
    for host in sorted(hosts, key=lambda one: one.name):
        lost = host.plan.get("lost") or {}
        for server in _wanted(host.plan):
            if server["name"] in lost:
                warnings.append(f"{host.name}: {server['name']} is left out: {lost[server['name']]}.")
                continue
            found.append(_workload(host, server, settings))
            warnings += [f"{host.name}: {server['name']} {text}" for text in _differences(server)]
    if not found:
        raise ExportError(
            "No host of this run has a server in its plan, so there is nothing to export. Nothing was written. Look at "
            "plan.yml, and set profile or target."
        )
    return sorted(found, key=lambda one: (one.host, one.name)), warnings


def _wanted(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The servers to have: a stand-in has the launch config of another one, and is there for a change only."""
    return [server for server in plan["servers"] if server["action"] != "stop" and "stands_in_for" not in server]


def _workload(host: HostPlan, server: Mapping[str, Any], settings: Settings) -> Workload:
    memory, argv = server["memory"], list(server["argv"])
    limit, request = int(server["memory_max_bytes"]), int(memory["ram_bytes"])
    if request >= limit:
        raise ExportError(
            f"{host.name}: {server['name']} needs {request} bytes and may have {limit}, all that the host has. Nothing "
            "was written. Lower ctx_size or parallel in the profile, or set servers_memory_overcommit to false."
        )
    gpus = gpus_of(argv, server["env"], memory.get("gpu_bytes") or ())
    folders = _folders(argv, host.roots)
    threads = int(flag_value(argv, "--threads") or 1)
    count = len(_wanted(host.plan))
    share = min(1.0, host.busy / count) if host.busy else 1.0
    return Workload(
        host=host.name,
        address=host.address,
        name=str(server["name"]),
        model_id=str(server["model_id"]),
        display_name=str(server.get("display_name") or server["model_id"]),
        tier=str(server.get("tier") or ""),
        kind=str(server.get("kind") or "model"),
        listens=str(server.get("host") or "127.0.0.1"),
        port=int(server["port"]),
        argv=tuple(container_argv(gpus.argv, int(server["port"]), settings)),
        planned_argv=tuple(argv),
        env=tuple(sorted((name, value) for name, value in server["env"].items() if not name.startswith(MARK))),
        folders=tuple(folders),
        strays=tuple(_strays(argv, folders, host.real)),
        writable=tuple(_writable(argv)),
        weights_bytes=int(memory.get("weights_bytes") or 0),
        request_bytes=request,
        limit_bytes=limit,
        # Half of it: the rest comes by weight while others are idle, and a node's own services need some.
        cpu_millis=max(50, int(threads * share * 500)),
        gpus=len(gpus.numbers),
        gpu_numbers=gpus.numbers,
        gpu_names=gpus.names,
        gpu_fault=gpus.fault,
        slots=slots_of(argv),
        patience_seconds=patience_of(server),
        start_seconds=int(server["max_startup_time"]),
        check_seconds=max(1, round((host.plan.get("start") or {}).get("readiness_check_interval") or 2)),
        stop_seconds=int(server["stop_timeout"]),
        revision=str(server["revision"]),
        profile=str(host.plan.get("profile") or ""),
        generation=int(server.get("generation") or 1),
        key_file=str(server.get("api_key_file") or ""),
        parts=parts_of(argv, host.registry),
        build=build_of(host.runtime) if host.runtime else None,
    )


def container_argv(argv: Sequence[str], port: int, settings: Settings) -> list[str]:
    """The command line with the container's program, address, port of a server on demand, and key file."""
    if "--api-key" in argv:
        raise ExportError(
            "A command line has an API key in it, which would be in the exported files. Nothing was written. Use "
            "servers_api_key_file."
        )
    replaced = {"--host": "0.0.0.0", "--port": str(port), "--api-key-file": KEY_FILE}
    words = [settings.binary, *argv[1:]]
    return [replaced.get(before, word) for before, word in zip(["", *words], words)]


def _folders(argv: Sequence[str], roots: Iterable[str]) -> list[str]:
    """The folders to mount: the model folder that a file is in, or the file's own folder outside of them."""
    paths = [value for value in flag_values(argv, PATH_FLAGS) if value.startswith("/")]
    plain = sorted((os.path.normpath(root) for root in roots), key=len)
    found = {next((root for root in plain if is_below(path, [root])), os.path.dirname(path)) for path in paths}
    return sorted(found)


def _writable(argv: Sequence[str]) -> list[str]:
    """The folders that the server writes in: those that it names, and that of a file."""
    named = set(flag_values(argv, set(WRITE_FLAGS) - {WRITE_FILE_FLAG}))
    files = {os.path.dirname(path) for path in flag_values(argv, [WRITE_FILE_FLAG])}
    return sorted({os.path.normpath(path) for path in named | files if path.startswith("/")})


def path_slug(path: str, most: int = 40) -> str:
    """A folder as part of a name, by its path alone: a further folder of models renames no other."""
    plain = re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")
    if f"/{plain.replace('-', '/')}" == path and len(plain) <= most:
        return plain
    return f"{plain[: most - 7]}-{hashlib.sha256(path.encode()).hexdigest()[:6]}".strip("-")


def _strays(argv: Sequence[str], folders: Sequence[str], real: Mapping[str, str]) -> list[tuple[str, str]]:
    """The links among the files whose targets are in none of the folders, with the targets."""
    shown = [*folders, *(real.get(folder) or folder for folder in folders)]
    found = {(path, real.get(path) or path) for path in flag_values(argv, PATH_FLAGS) if path.startswith("/")}
    return sorted((path, target) for path, target in found if not is_below(target, shown))


def _differences(server: Mapping[str, Any]) -> list[str]:
    """What a container does not have of the plan, as the ends of sentences."""
    argv = server["argv"]
    found = []
    if "on_demand" in server:
        found.append("starts on demand on its host, and runs all the time in a container.")
    if "--mlock" in argv:
        found.append("has --mlock, which a container may not do without a limit of locked memory: raise it there.")
    if "--rpc" in argv:
        found.append("has --rpc: other machines have to be reached from the container.")
    return found


def merged(workloads: Sequence[Workload]) -> list[Workload]:
    """The servers of all hosts for a cluster: equal ones are one with replicas, others have their host in the name."""
    by_name: dict[str, list[Workload]] = {}
    of_host: dict[str, Any] = {
        **{"host": "", "address": "", "listens": "", "profile": ""},
        **{
            "generation": 0,
            "check_seconds": 0,
            "planned_argv": (),
            "key_file": "",
            "gpu_numbers": (),
            "parts": (),
            "build": None,
        },
    }
    for one in workloads:
        by_name.setdefault(one.name, []).append(one)
    found = []
    for name, same in sorted(by_name.items()):
        plain = {replace(one, **of_host) for one in same}
        if len(plain) == 1:
            found.append(replace(same[0], replicas=len(same)))
        else:
            found += [replace(one, name=f"{name}.{proxy_name(one.host)}") for one in same]
    return found
