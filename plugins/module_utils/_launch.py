# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Launch configs: where they lie, what a server's sandbox is, and how a set of files is written all or none."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._errors import MagiError
from ._files import discard, leftovers, sync_folder, write_beside
from ._proc import STATE_MARKER
from ._quote import supervisor_environment, systemd_environment, systemd_paths
from ._record import record_path

UNIT_FOLDER = "/etc/systemd/system"
UNIT_PREFIX = "magi-llama-"
TARGET = "magi-llama.target"

# Names from /proc/devices: they cover every GPU, however many nodes it has.
GPU_DEVICES = ("char-nvidia*", "char-drm", "char-kfd")
# The first systemd with RestartSteps and RestartMaxDelaySec.
BACK_OFF_VERSION = 254
# A server that keeps crashing is given up after so many starts: they last longer than a minute's fault, whose end a
# restart finds, and, however long each of them takes to crash, not longer than the time in which systemd counts them.
START_LIMIT_BURST = 10
START_LIMIT_SPARE = 1800
HOMES = ("/home/", "/root/", "/run/user/")
PATH_FLAGS = ("--model", "--mmproj", "--lora", "--model-draft", "--spec-draft-model", "--chat-template-file")


class LaunchConfigError(MagiError):
    """Launch configs that could not be written; the old ones are as they were."""


@dataclass(frozen=True)
class File:
    """A file as it should be."""

    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Managed:
    """Files that are ours: those in folder that match the pattern and hold the marker's text."""

    folder: str
    pattern: str
    marker: str


def unit_name(server: str) -> str:
    """The systemd unit of a server."""
    return f"{UNIT_PREFIX}{server}.service"


def config_path(service_manager: str, state_dir: str, server: str) -> str:
    """Where a server's launch config lies."""
    if service_manager == "systemd":
        return os.path.join(UNIT_FOLDER, unit_name(server))
    return os.path.join(state_dir, "supervisor", "conf.d", f"{server}.conf")


def common_config_path(service_manager: str, state_dir: str) -> str:
    """Where the config that all servers share lies."""
    if service_manager == "systemd":
        return os.path.join(UNIT_FOLDER, TARGET)
    return os.path.join(state_dir, "supervisor", "supervisord.conf")


def managed_files(state_dir: str) -> list[Managed]:
    """The launch configs of this state directory, under either service manager."""
    env = {STATE_MARKER: state_dir}
    supervisor = os.path.join(state_dir, "supervisor", "conf.d")
    # A whole line: another state directory's name may begin with this one's. Supervisor's stands in quotes.
    line = f"\n{systemd_environment(env)}\n"
    return [
        Managed(UNIT_FOLDER, f"{UNIT_PREFIX}*.service", line),
        Managed(supervisor, "*.conf", supervisor_environment(env)),
    ]


def record_of(plan: Mapping[str, Any], service_manager: str) -> dict[str, Any]:
    """The record of what is deployed once the plan is applied."""
    servers = [
        {key: value for key, value in server.items() if key not in ("action", "reason")}
        for server in plan["servers"]
        if server["action"] != "stop"
    ]
    return {
        "schema_version": 1,
        "profile": plan["profile"],
        "service_manager": service_manager,
        "start": plan.get("start"),
        "servers": servers,
    }


def systemd_dependencies(server: Mapping[str, Any], gpu_access: Any = "auto") -> dict[str, Any]:
    """What must be there before a server is started at boot: its models' mounts, its address, the GPU's devices."""
    host = str(server["host"])
    # A wildcard address is there from the beginning; binding any other fails, for good, before the network is up.
    online = None if is_loopback(host) or host in ("0.0.0.0", "::") else "network-online.target"
    return {
        "After": [unit for unit in ("network.target", online) if unit]
        + (["nvidia-persistenced.service"] if _uses_gpu(server, gpu_access) else []),
        "Wants": online,
        "RequiresMountsFor": [systemd_paths([folder]) for folder in model_folders(server["argv"])],
    }


def systemd_restart(systemd_version: int | None) -> dict[str, Any]:
    """Back-off between the restarts of a server that crashes, as far as this systemd knows it."""
    if systemd_version is None or systemd_version < BACK_OFF_VERSION:
        return {"RestartSec": 20}
    return {"RestartSec": 1, "RestartSteps": 5, "RestartMaxDelaySec": 60}


def systemd_start_limit(max_startup_time: int) -> dict[str, Any]:
    """When a server that keeps crashing is given up. It may take its whole start-up time to crash."""
    interval = START_LIMIT_SPARE + START_LIMIT_BURST * int(max_startup_time)
    return {"StartLimitIntervalSec": interval, "StartLimitBurst": START_LIMIT_BURST}


def systemd_sandbox(
    server: Mapping[str, Any], gpu_access: Any = "auto", numa_policy: str = "", numa_mask: str = ""
) -> dict[str, Any]:
    """The settings of a unit that depend on its server: memory, devices, folders, addresses.

    gpu_access is true, false or "auto", which is true where the plan puts layers on a GPU.
    """
    argv = [str(word) for word in server["argv"]]
    uses_gpu = _uses_gpu(server, gpu_access)
    at_home = any(f"{word}/".startswith(HOMES) for word in argv)
    # Servers on other machines, and clients there, need more than the loopback address.
    closed = is_loopback(str(server["host"])) and "--rpc" not in argv
    return {
        "MemoryMax": server.get("memory_max_bytes") or None,
        "NUMAPolicy": numa_policy,
        "NUMAMask": numa_mask,
        "ReadOnlyPaths": [systemd_paths([f"-{folder}"]) for folder in model_folders(argv)],
        "ProtectHome": "read-only" if at_home else True,
        "PrivateDevices": not uses_gpu,
        "DeviceAllow": [f"{device} rw" for device in GPU_DEVICES] if uses_gpu else [],
        # GPU drivers compile kernels into memory.
        "MemoryDenyWriteExecute": not uses_gpu,
        "IPAddressDeny": "any" if closed else None,
        "IPAddressAllow": "localhost" if closed else None,
    }


def model_folders(argv: Sequence[str]) -> list[str]:
    """The folders of the model's files in a command line."""
    paths = [value for flag, value in zip(argv, argv[1:]) if flag in PATH_FLAGS and value.startswith("/")]
    return sorted({os.path.dirname(path) for path in paths} - {"/"})


def _uses_gpu(server: Mapping[str, Any], gpu_access: Any) -> bool:
    return server["memory"].get("vram_bytes", 0) > 0 if gpu_access == "auto" else truth(gpu_access)


def truth(value: Any) -> bool:
    """A value of servers_gpu_access other than auto. Raises LaunchConfigError."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        return words[str(value).lower()]
    except KeyError:
        raise LaunchConfigError(f"servers_gpu_access is {value}: set it to auto, true or false.") from None


def is_loopback(host: str) -> bool:
    """Whether only the host itself can reach a server that listens there."""
    return host in ("localhost", "::1") or host.startswith("127.")


def record_file(state_dir: str, record: Mapping[str, Any]) -> File:
    """The record as a file."""
    return File(record_path(state_dir), (json.dumps(record, indent=2) + "\n").encode())


def differing(files: Sequence[File]) -> list[File]:
    """Those of the files that are not yet as they should be."""
    return [file for file in files if _found(file.path) != file]


def deployed(state_dir: str, service_manager: str) -> dict[str, str]:
    """The record and every launch config of this state directory, each path with the digest of what lies there.

    By it the controller knows whether there is anything to write, without sending it all.
    """
    found = [_found(path) for path in [record_path(state_dir), *deployed_paths(state_dir, service_manager)]]
    return {file.path: digest(file) for file in found if file is not None}


def deployed_paths(state_dir: str, service_manager: str) -> list[str]:
    """Paths of the launch configs of this state directory, and of the one that they share, be it there or not."""
    return [*superfluous(managed_files(state_dir), []), common_config_path(service_manager, state_dir)]


def digest(file: File) -> str:
    """A text that changes when a file's content or its mode does."""
    return hashlib.sha256(b"%o\n%b" % (file.mode, file.content)).hexdigest()


def read_file(path: str) -> File:
    """A file as it is. Raises OSError."""
    with open(path, "rb") as stream:
        return File(path, stream.read(), os.fstat(stream.fileno()).st_mode & 0o7777)


def _found(path: str) -> File | None:
    try:
        return read_file(path)
    except OSError:
        return None


def current_text(path: str) -> str:
    """A file's text for a diff; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def superfluous(managed: Sequence[Managed], keep: Sequence[str]) -> list[str]:
    """Paths of files that are ours and are not to be kept."""
    found = []
    for entry in managed:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(entry.folder)):
                path = os.path.join(entry.folder, name)
                if (
                    fnmatch.fnmatchcase(name, entry.pattern)
                    and path not in keep
                    and os.path.isfile(path)
                    and entry.marker in current_text(path)
                ):
                    found.append(path)
    return found


def refuse_foreign(files: Sequence[File], managed: Sequence[Managed]) -> None:
    """Raise LaunchConfigError where a file would take the place of one that is not ours."""
    for file in files:
        folder, name = os.path.split(file.path)
        for entry in managed:
            if folder != entry.folder or not fnmatch.fnmatchcase(name, entry.pattern) or not os.path.lexists(file.path):
                continue
            if entry.marker not in current_text(file.path):
                raise LaunchConfigError(
                    f"{file.path} is there and not ours, or another state directory's: nothing was touched. Rename the "
                    "model's file, from which the server has its name, or that other one."
                )


def write_all(files: Sequence[File], remove: Sequence[str] = ()) -> None:
    """Write every file and then remove others, in this order; where one cannot be written, none is.

    Raises LaunchConfigError.
    """
    staged: list[tuple[str, File]] = []
    path = ""
    try:
        for folder in sorted({os.path.dirname(file.path) for file in files}):
            path = folder
            os.makedirs(folder, mode=0o755, exist_ok=True)
            for path in leftovers(folder):
                os.unlink(path)
        for file in files:
            path = file.path
            staged.append((write_beside(path, file.content, file.mode), file))
        for temporary, file in staged:
            path = file.path
            os.replace(temporary, path)
        for path in remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for folder in sorted({os.path.dirname(path) for path in [*(file.path for file in files), *remove]}):
            sync_folder(folder)
    except OSError as error:
        raise LaunchConfigError(
            f"{path} could not be written: {error.strerror}. Nothing was started or stopped; make room or mend the "
            "permissions and run again."
        ) from error
    finally:
        for temporary, _file in staged:
            discard(temporary)
