# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A Compose file for each host: its servers, and a gateway to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._core.exchange import authority
from .._gateway.fleet import proxy_name
from . import probes, proxy
from .checks import check_containers
from .workloads import DEFAULT_IMAGE, KEY_FILE, USER_ID, Settings, Workload, path_slug

FILE = "compose.yaml"
GATEWAY = "gateway"
PREPARE = "prepare"
PIDS = 4096
# Not the host's own file, which only root can read: Compose mounts it with the owner and mode that it has.
_KEY_VARIABLE = (
    f"${{LLAMA_API_KEY_FILE:?set it to a copy of the key file that user {USER_ID} can read, see docs/export.md}}"
)
_HARDENED: dict[str, Any] = {
    "user": f"{USER_ID}:{USER_ID}",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "restart": "unless-stopped",
    # Ends what a check has left, and hands signals on.
    "init": True,
}


def compose_files(workloads: Sequence[Workload], settings: Settings) -> dict[str, Any]:
    """Return each file by its path: text, or the content of a YAML file. A folder for each host."""
    check_containers(workloads, settings, share_gpus=True)
    by_host: dict[str, list[Workload]] = {}
    for one in workloads:
        by_host.setdefault(one.host, []).append(one)
    found: dict[str, Any] = {}
    for host, own in by_host.items():
        folder = proxy_name(host)
        found[f"{folder}/{FILE}"] = _project(folder, own, settings)
        found[f"{folder}/{probes.FILE}"] = probes.SCRIPT
        files = proxy.proxy_files(own, service_name, resolves=True)
        found.update({f"{folder}/{GATEWAY}/{name}": text for name, text in files.items()})
    return found


def service_name(workload: Workload) -> str:
    """The service of a server. A server may have the name of one of ours."""
    return f"{workload.name}-server" if workload.name in (GATEWAY, PREPARE) else workload.name


def _project(name: str, workloads: Sequence[Workload], settings: Settings) -> dict[str, Any]:
    has_key = any(one.key_file for one in workloads)
    written = {volume: path for one in workloads for volume, path in written_volumes(one).items()}
    # The names of projects have no dots and capitals.
    project = "".join(letter if letter.isalnum() or letter in "_-" else "-" for letter in f"llama-{name}".lower())
    return {
        "name": project,
        "services": {
            **{service_name(one): _server(one, settings) for one in workloads},
            GATEWAY: _gateway(workloads, settings),
            **({PREPARE: _prepare(written, settings)} if written else {}),
        },
        **({"volumes": {volume: {} for volume in written}} if written else {}),
        **({"secrets": {"api-key": {"file": _KEY_VARIABLE}}} if has_key else {}),
    }


def _text(value: str) -> str:
    """A text as it is: Compose puts in variables at a $."""
    return value.replace("$", "$$")


def _texts(values: Sequence[str]) -> list[str]:
    return [_text(value) for value in values]


def _server(one: Workload, settings: Settings) -> dict[str, Any]:
    written = written_volumes(one)
    ids = [str(number) for number in one.gpu_numbers]
    devices = [{"driver": "nvidia", "device_ids": ids, "capabilities": ["gpu"]}] if ids else []
    return {
        **_image(settings),
        "entrypoint": _texts(one.argv[:1]),
        "command": _texts(one.argv[1:]),
        **({"environment": {name: _text(value) for name, value in one.env}} if one.env else {}),
        **_HARDENED,
        "labels": container_labels(one),
        "ports": [f"{authority(published_address(one.listens), one.port)}:{one.port}"],
        "volumes": [
            *({**_mount(folder, folder), "read_only": True} for folder in one.folders),
            {**_mount(f"./{probes.FILE}", f"{probes.PLACE}/{probes.FILE}"), "read_only": True},
            *(_volume(volume, path) for volume, path in written.items()),
        ],
        "tmpfs": ["/tmp"],
        **({"depends_on": {PREPARE: {"condition": "service_completed_successfully"}}} if written else {}),
        **_secrets(one.key_file),
        "deploy": {
            "resources": {
                "limits": {"memory": f"{one.limit_bytes}b", "pids": PIDS},
                "reservations": {"memory": f"{one.request_bytes}b", **({"devices": devices} if devices else {})},
            }
        },
        # A server that swaps is slower than one that is restarted.
        "memswap_limit": f"{one.limit_bytes}b",
        "healthcheck": {
            "test": ["CMD-SHELL", f"{_shell(probes.ready_command(one))} && {_shell(probes.alive_command(one))}"],
            "interval": "15s",
            "timeout": f"{one.patience_seconds + probes.ALIVE_EXTRA_SECONDS + probes.READY_SECONDS}s",
            "retries": 3,
            "start_period": f"{one.start_seconds}s",
        },
        "stop_grace_period": f"{one.stop_seconds}s",
    }


def written_volumes(one: Workload) -> dict[str, str]:
    """The folders that a server writes in by their volumes: in memory they would count as the server's."""
    return {f"{service_name(one)}-{path_slug(path)}": path for path in one.writable}


def _volume(name: str, target: str) -> dict[str, Any]:
    return {"type": "volume", "source": name, "target": _text(target)}


def _prepare(written: Mapping[str, str], settings: Settings) -> dict[str, Any]:
    """Gives the volumes, which are root's when they are new, to the servers' user, and ends."""
    places = {volume: f"/volumes/{volume}" for volume in written}
    return {
        **_image(settings),
        "entrypoint": ["chown", f"{USER_ID}:{USER_ID}"],
        "command": list(places.values()),
        **_HARDENED,
        "user": "0:0",
        "cap_add": ["CHOWN"],
        "restart": "no",
        "network_mode": "none",
        "volumes": [_volume(volume, place) for volume, place in places.items()],
    }


def _image(settings: Settings) -> dict[str, Any]:
    # The default one is in no registry, where others could take its name.
    return {"image": settings.image, **({"pull_policy": "never"} if settings.image == DEFAULT_IMAGE else {})}


def _gateway(workloads: Sequence[Workload], settings: Settings) -> dict[str, Any]:
    has_key = next((one.key_file for one in workloads if one.key_file), "")
    return {
        "image": settings.gateway_image,
        "entrypoint": ["sh", f"{proxy.SOURCE}/{proxy.START}"],
        "command": [],
        **_HARDENED,
        "ports": [f"127.0.0.1:{proxy.PORT}:{proxy.PORT}", f"127.0.0.1:{proxy.METRICS_PORT}:{proxy.METRICS_PORT}"],
        "volumes": [{**_mount(f"./{GATEWAY}", proxy.SOURCE), "read_only": True}],
        "tmpfs": [f"{proxy.PLACE}:mode=1777"],
        **_secrets(has_key),
        "deploy": {"resources": {"limits": {"memory": f"{proxy.MEMORY_BYTES}b", "pids": PIDS}}},
        "depends_on": {service_name(one): {"condition": "service_started"} for one in workloads},
        "stop_grace_period": "30s",
    }


def published_address(listens: str) -> str:
    return "127.0.0.1" if listens == "localhost" else listens or "0.0.0.0"


def _mount(source: str, target: str) -> dict[str, Any]:
    return {"type": "bind", "source": _text(source), "target": _text(target), "bind": {"create_host_path": False}}


def _secrets(key_file: str) -> dict[str, Any]:
    return {"secrets": [{"source": "api-key", "target": KEY_FILE}]} if key_file else {}


def container_labels(one: Workload) -> Mapping[str, str]:
    return {"magi.llama.server": one.name, "magi.llama.model": one.model_id, "magi.llama.revision": one.revision}


def _shell(words: Sequence[str]) -> str:
    return " ".join("'" + _text(word).replace("'", "'\\''") + "'" for word in words)
