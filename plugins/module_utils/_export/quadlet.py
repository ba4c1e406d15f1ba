# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Quadlet files for each host: its servers, and a gateway to them, as containers that systemd starts through podman.

The service manager for containers writes files of its own. These are for hosts that run without the collection.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from .._core.exchange import authority
from .._core.stopping import first_wait_seconds
from .._gateway.fleet import proxy_name
from .._launch.quadlet import podman_mount
from .._launch.quoting import QuoteError, systemd_arguments, systemd_paths, systemd_settings
from .._launch.units import systemd_restart, systemd_start_limit, systemd_stop
from . import probes, proxy
from .checks import check_containers, server_image
from .compose import GATEWAY, PIDS, container_labels, published_address, service_name, written_volumes
from .workloads import DEFAULT_IMAGE, KEY_FILE, USER_ID, ExportError, Settings, Workload

# Of units, containers and volumes. The collection's own units begin with another one.
PREFIX = "llama-"
NETWORK = "llama.network"
MANAGED = "# Ansible managed (magi.llama): changes made here are lost in the next run\n"
# The gateway has no time of its own in the plan.
GATEWAY_SECONDS = 30
# Until podman has ended and removed a container after the last signal.
_SPARE_SECONDS = 15
_HARDENED = {
    "ReadOnly": True,
    "NoNewPrivileges": True,
    "DropCapability": "all",
    "User": USER_ID,
    "Group": USER_ID,
    "Network": NETWORK,
}
_OPTIONS = (
    # The journal has what the container writes, and the unit its limits.
    *("--log-driver=passthrough", "--pids-limit=0", "--security-opt=label=disable", "--ulimit=core=0:0"),
)
_INSTALL = {"Install": {"WantedBy": "multi-user.target"}}


def quadlet_files(workloads: Sequence[Workload], settings: Settings) -> dict[str, Any]:
    """Return each file's text by its path, a folder for each host. Raises ExportError."""
    check_containers(workloads, settings, share_gpus=True)
    by_host: dict[str, list[Workload]] = {}
    for one in workloads:
        by_host.setdefault(one.host, []).append(one)
    found: dict[str, Any] = {}
    for host, own in by_host.items():
        folder = proxy_name(host)
        found[f"{folder}/{NETWORK}"] = _unit_text({"Network": {"NetworkName": "llama"}})
        found[f"{folder}/{probes.FILE}"] = probes.SCRIPT
        for one in own:
            try:
                found[f"{folder}/{_unit(one)}.container"] = _unit_text(_server(one, settings))
            except QuoteError as error:
                raise ExportError(f"{host}: {one.name}: {error} Nothing was written.") from error
        found[f"{folder}/{PREFIX}{GATEWAY}.container"] = _unit_text(_gateway(own, settings))
        files = proxy.proxy_files(own, _unit, resolves=True)
        found.update({f"{folder}/{GATEWAY}/{name}": text for name, text in files.items()})
    return found


def quadlet_notes(_workloads: Sequence[Workload], settings: Settings) -> list[str]:
    """A warning about names of images that podman may not find by themselves."""
    short = [image for image in (settings.image, settings.gateway_image) if _is_short(image)]
    if not short:
        return []
    return [
        f"podman looks for {' and '.join(short)} in the registries of the host's registries.conf, and may have none: "
        "set export_image and export_gateway_image to names that begin with their registry."
    ]


def _is_short(image: str) -> bool:
    first, slash, _rest = image.partition("/")
    return image != DEFAULT_IMAGE and not (slash and ("." in first or ":" in first or first == "localhost"))


def _unit(one: Workload) -> str:
    """Its container, and its unit without the suffix. The containers find each other by this name."""
    return f"{PREFIX}{service_name(one)}"


def _unit_text(sections: Mapping[str, Mapping[str, Any]]) -> str:
    return MANAGED + "\n".join(f"[{name}]\n{systemd_settings(settings)}\n" for name, settings in sections.items())


def _arguments(options: Sequence[str]) -> list[str]:
    """Options of podman run as settings, each quoted as a whole."""
    return [_one_line(systemd_arguments([option])) for option in options]


def _one_line(text: str) -> str:
    return text.replace(" \\\n    ", " ")


def _server(one: Workload, settings: Settings) -> dict[str, Mapping[str, Any]]:
    image = server_image(settings)
    # The gateway of the host and the health check are what asks it; a check that fails three times ends it.
    health = shlex.join(probes.ready_command(one)) + " && " + shlex.join(probes.alive_command(one))
    patience = one.patience_seconds + probes.ALIVE_EXTRA_SECONDS + probes.READY_SECONDS
    options = [
        *_OPTIONS,
        f"--entrypoint={one.argv[0]}",
        *(["--pull=never"] if settings.image == DEFAULT_IMAGE else []),
        # podman sends the second SIGTERM, and SIGKILL.
        f"--stop-timeout={max(one.stop_seconds - first_wait_seconds(one.stop_seconds), 1)}",
        *(f"--label={name}={value}" for name, value in container_labels(one).items()),
        *(f"--device=nvidia.com/gpu={number}" for number in one.gpu_numbers),
        *(f"--mount={_folder(folder)}" for folder in one.folders),
        *(
            f"--mount=type=volume,source={PREFIX}{volume},destination={path},U=true"
            for volume, path in written_volumes(one).items()
        ),
        *_secret(bool(one.key_file), settings),
        f"--health-cmd={health}",
        *("--health-interval=15s", "--health-retries=3", f"--health-timeout={patience}s"),
        *(f"--health-start-period={one.start_seconds}s", "--health-on-failure=kill"),
    ]
    return {
        "Unit": {
            "Description": f"llama-server {one.name} on port {one.port}",
            "RequiresMountsFor": [systemd_paths([folder]) for folder in one.folders],
            **systemd_start_limit(one.start_seconds),
        },
        "Container": {
            "Image": image,
            "ContainerName": _unit(one),
            "Environment": [systemd_arguments([f"{name}={value}"]) for name, value in one.env],
            **_HARDENED,
            "PublishPort": f"{authority(published_address(one.listens), one.port)}:{one.port}",
            "Volume": f"./{probes.FILE}:{probes.PLACE}/{probes.FILE}:ro",
            "PodmanArgs": _arguments(options),
            "Exec": _one_line(systemd_arguments(one.argv[1:])),
        },
        "Service": {
            "MemoryMax": one.limit_bytes,
            "MemoryLow": one.request_bytes,
            # A server that swaps is slower than one that is restarted.
            "MemorySwapMax": 0,
            "TasksMax": PIDS,
            # Exit 1 is a configuration error, which a restart does not fix.
            "Restart": "on-failure",
            "RestartPreventExitStatus": 1,
            "SuccessExitStatus": 143,
            **systemd_restart(None),
            "TimeoutStartSec": one.start_seconds,
            **systemd_stop(one.stop_seconds),
            "TimeoutStopSec": one.stop_seconds + _SPARE_SECONDS,
        },
        **_INSTALL,
    }


def _gateway(workloads: Sequence[Workload], settings: Settings) -> dict[str, Mapping[str, Any]]:
    units = [f"{_unit(one)}.service" for one in workloads]
    options = [
        *_OPTIONS,
        "--entrypoint=sh",
        f"--stop-timeout={GATEWAY_SECONDS}",
        f"--mount=type=tmpfs,destination={proxy.PLACE},tmpfs-mode=1777",
        *_secret(any(one.key_file for one in workloads), settings),
    ]
    return {
        "Unit": {"Description": "Gateway of the llama-servers", "Wants": units, "After": units},
        "Container": {
            "Image": settings.gateway_image,
            "ContainerName": f"{PREFIX}{GATEWAY}",
            **_HARDENED,
            "PublishPort": [f"127.0.0.1:{port}:{port}" for port in (proxy.PORT, proxy.METRICS_PORT)],
            "Volume": f"./{GATEWAY}:{proxy.SOURCE}:ro",
            "PodmanArgs": _arguments(options),
            "Exec": f"{proxy.SOURCE}/{proxy.START}",
        },
        "Service": {
            "MemoryMax": proxy.MEMORY_BYTES,
            "TasksMax": PIDS,
            "Restart": "on-failure",
            **systemd_restart(None),
            "TimeoutStopSec": GATEWAY_SECONDS + _SPARE_SECONDS,
        },
        **_INSTALL,
    }


def _folder(path: str) -> str:
    return podman_mount({"source": path, "path": path, "writable": False})


def _secret(has_key: bool, settings: Settings) -> list[str]:
    return [f"--secret={settings.secret},type=mount,target={KEY_FILE},uid={USER_ID},mode=0400"] if has_key else []
