# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The parts of a quadlet file that depend on its server: what podman is to run, and what systemd limits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.podman import LINK_FOLDER
from .._core.stopping import first_wait_seconds
from .quoting import QuoteError, systemd_arguments
from .units import SOCKET_BIND_VERSION, UNIT_PREFIX, locks_memory, systemd_sandbox, systemd_stop, uses_gpu

# Settings of a unit that limit all processes of a service: a container's are below it. What confines podman itself,
# such as its system calls, would keep it from making a container, which has a sandbox of its own.
_OF_SERVICE = (
    *("MemoryMax", "MemorySwapMax", "TasksMax", "NUMAPolicy", "NUMAMask", "SocketBindDeny", "SocketBindAllow"),
    *("IPAddressDeny", "IPAddressAllow"),
)
# podman needs these to end and remove a container after the last signal.
_SPARE_SECONDS = 15


def quadlet_container(
    server: Mapping[str, Any], image: Mapping[str, Any], user_ids: Sequence[int], gpu_access: Any = "auto"
) -> str:
    """Return the section [Container] of a server: its command line as planned, its mounts and its sandbox.

    image is that of the fact llama_runtime. user_ids are those of the servers' user: its own, its group's, and further
    groups'; empty in check mode, where the user does not exist yet. Raises QuoteError.
    """
    argv = [str(word) for word in server["argv"]]
    uid, gid, *groups = [*user_ids, *([65534, 65534] if len(user_ids) < 2 else [])]
    wait = first_wait_seconds(int(server["stop_timeout"]))
    devices = image["devices"] if uses_gpu(server, gpu_access) else []
    memlock = ["--ulimit=memlock=-1:-1"] if locks_memory(argv) else []
    options = [
        # The program's path is the same as on the host, so that a process shows the planned command line.
        f"--entrypoint={argv[0]}",
        *("--pull=never", "--no-healthcheck", "--log-driver=passthrough", "--read-only-tmpfs=true"),
        # The unit limits memory and tasks of the container and of what supervises it.
        "--pids-limit=0",
        # On a host with SELinux: it would refuse models without a label for containers.
        "--security-opt=label=disable",
        *("--ulimit=core=0:0", *memlock),
        # podman sends the second SIGTERM, and SIGKILL.
        f"--stop-timeout={max(int(server['stop_timeout']) - wait, 1)}",
        *(f"--group-add={group}" for group in groups),
        *(f"--unsetenv={name}" for name in image["unset"]),
        *(f"--device={device}" for device in devices),
        *(f"--mount={mount}" for mount in _mounts(server)),
    ]
    variables = {"HOME": "/tmp", **server["env"]}
    lines = [
        f"Image={image['id']}",
        f"ContainerName={UNIT_PREFIX}{server['name']}",
        *(f"Environment={systemd_arguments([f'{name}={value}'])}" for name, value in sorted(variables.items())),
        "Network=host",
        "ReadOnly=true",
        "NoNewPrivileges=true",
        "DropCapability=all",
        f"User={uid}",
        f"Group={gid}",
        *(f"PodmanArgs={systemd_arguments([option])}" for option in options),
        f"Exec={systemd_arguments(argv[1:])}",
    ]
    return "\n".join(lines)


def quadlet_service(
    server: Mapping[str, Any],
    numa_policy: str = "",
    numa_mask: str = "",
    systemd_version: int | None = SOCKET_BIND_VERSION,
    allow_addresses: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the settings of the section [Service]: the limits that a server has under systemd, and how it stops."""
    limits = systemd_sandbox(
        server,
        numa_policy=numa_policy,
        numa_mask=numa_mask,
        systemd_version=systemd_version,
        allow_addresses=allow_addresses,
    )
    timeout = int(server["stop_timeout"])
    # The process that the signal is sent to passes it on to llama-server, and ends with it and its exit code.
    stop = {**systemd_stop(timeout), "TimeoutStopSec": timeout + _SPARE_SECONDS}
    return {**{key: limits[key] for key in _OF_SERVICE if key in limits}, **stop}


def _mounts(server: Mapping[str, Any]) -> list[str]:
    program = str(server["argv"][0])
    folder = os.path.dirname(program)
    shows = (server.get("sandbox") or {}).get("shows", [])
    own = {"source": os.path.join(os.path.dirname(folder), LINK_FOLDER), "path": folder, "writable": False}
    return [podman_mount(show) for show in [own, *shows]]


def podman_mount(show: Mapping[str, Any]) -> str:
    """Return an option --mount of podman: a folder of the host at a path of the container. Raises QuoteError."""
    for path in (show["source"], show["path"]):
        if re.search(r"[\x00-\x1f\x7f\udc80-\udcff,\"]", path):
            raise QuoteError(
                f"The path {path!r} cannot be mounted in a container: it contains a comma, a double quote or a control "
                "character. Rename the file or folder."
            )
    return f"type=bind,source={show['source']},destination={show['path']},ro={'false' if show['writable'] else 'true'}"
