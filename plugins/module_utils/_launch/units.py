# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The settings of a systemd unit that depend on its server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._core.addresses import unit_addresses
from .._core.argv import PATH_FLAGS, WRITE_FLAGS, flag_value, flag_values
from .._core.links import is_below
from .._core.places import listening_place
from .._core.stopping import first_wait_seconds
from .._core.text import printable
from .._core.values import is_loopback, parse_bool
from .hidden import CREDENTIALS, HOME, HOMES, TMP
from .quoting import systemd_binds, systemd_paths

UNIT_FOLDER = "/etc/systemd/system"
UNIT_PREFIX = "magi-llama-"
# Loads the driver's module that CUDA itself loads through a setuid program, which the servers' sandbox forbids.
GPU_UNIT = "magi-llama.gpu.service"
# Like the GPU's unit, no name of a server's. Both have the line watchdog_marker().
WATCHDOG_SERVICE, WATCHDOG_TIMER = "magi-llama.watchdog.service", "magi-llama.watchdog.timer"
# In the state directory.
WATCHDOG_PROGRAM = "watchdog.py"
# Below /var/cache: not the folder of the runtime's cache, which root alone may write.
GPU_CACHE = "magi-llama-gpu"
TARGET = "magi-llama.target"

# Names from /proc/devices: they cover all device nodes of every GPU.
GPU_DEVICES = ("char-nvidia*", "char-drm", "char-kfd")
# The first systemd with RestartSteps and RestartMaxDelaySec.
BACK_OFF_VERSION = 254
# The first systemd with LoadCredential.
CREDENTIALS_VERSION = 247
# The first systemd with SocketBindAllow and SocketBindDeny. Older ones warn of them in the journal at every start.
SOCKET_BIND_VERSION = 249
KEY_CREDENTIAL = "api-keys"
# systemd stops restarting a crashing server after this many starts. With back-off they span more than a minute, so a
# short outage is survived; the interval below is long enough to count all of them, even if each crash takes long.
START_LIMIT_BURST = 10
START_LIMIT_SPARE = 1800
# Exit code of a unit's stop command, if the server still runs at its end. systemd itself sends the second SIGTERM then.
STILL_RUNS = 75
# Where the process has ended before the stop, systemd runs the command without its PID.
_STOP_SCRIPT = """[ -n "$MAINPID" ] || exit 0; kill -TERM "$MAINPID" || exit 0; n=0; \
while [ $n -lt {tenths} ]; do sleep 0.1; kill -0 "$MAINPID" 2>/dev/null || exit 0; n=$((n+1)); done; exit {code}"""
# Flags with which a server places its threads or memory itself.
PLACEMENT_FLAGS = ("--numa", "--cpu-mask", "--cpu-range", "--cpu-strict", "--prio", "--poll")
# llama-server has a thread for each core twice and one for each connection; this only bounds a runaway.
TASKS_MAX = 4096


def watchdog_marker(state_dir: str) -> str:
    """The line by which a unit of the watchdog is known as that of a state directory."""
    return f"# Ansible managed (magi.llama): the watchdog of {printable(state_dir)}\n"


def unit_name(server: str) -> str:
    """The systemd unit of a server."""
    return f"{UNIT_PREFIX}{server}.service"


def credential_path(server: str) -> str:
    """Where systemd puts the API key file of a server, for that server's user alone."""
    return os.path.join(CREDENTIALS, unit_name(server), KEY_CREDENTIAL)


def systemd_dependencies(server: Mapping[str, Any], gpu_access: Any = "auto") -> dict[str, Any]:
    """What a server needs before it is started at boot: its models' mounts, its address, the GPU's devices."""
    host = listening_place(server)[0]
    # A wildcard address can always be bound; binding any other before the network is up fails permanently.
    has_gpu = uses_gpu(server, gpu_access)
    online = None if is_loopback(host) or host in ("0.0.0.0", "::") else "network-online.target"
    return {
        "After": [unit for unit in ("network.target", online) if unit]
        + (["nvidia-persistenced.service", GPU_UNIT] if has_gpu else []),
        "Wants": [online, GPU_UNIT] if has_gpu else online,
        # systemd does not follow links for this.
        "RequiresMountsFor": [
            systemd_paths([folder])
            for folder in sorted({*model_folders(server["argv"]), *_sandbox(server).get("folders", [])})
        ],
    }


def systemd_restart(systemd_version: int | None) -> dict[str, Any]:
    """Back-off between restarts of a crashing server, as far as this systemd version supports it."""
    if systemd_version is None or systemd_version < BACK_OFF_VERSION:
        return {"RestartSec": 20}
    return {"RestartSec": 1, "RestartSteps": 5, "RestartMaxDelaySec": 60}


def systemd_start_limit(max_startup_time: int) -> dict[str, Any]:
    """When systemd stops restarting a crashing server. Each crash may take its whole start-up time."""
    interval = START_LIMIT_SPARE + START_LIMIT_BURST * int(max_startup_time)
    return {"StartLimitIntervalSec": interval, "StartLimitBurst": START_LIMIT_BURST}


def systemd_stop(stop_timeout: int) -> dict[str, Any]:
    """How systemd stops a server, also at shutdown: SIGTERM, a wait, SIGTERM, a wait, SIGKILL; in seconds, all in all.

    The first signal is sent by a command, since systemd sends KillSignal only once.
    """
    wait = first_wait_seconds(stop_timeout)
    script = _STOP_SCRIPT.format(tenths=10 * wait, code=STILL_RUNS).replace("$", "$$")
    # The command has to end by itself: with one that times out, systemd does not wait between the signals that follow.
    return {"ExecStop": f"-/bin/sh -c '{script}'", "TimeoutStopSec": max(stop_timeout - wait, 2 * wait)}


def systemd_sandbox(
    server: Mapping[str, Any],
    gpu_access: Any = "auto",
    numa_policy: str = "",
    numa_mask: str = "",
    user_namespaces: bool = True,
    systemd_version: int | None = SOCKET_BIND_VERSION,
    allow_addresses: Sequence[str] = (),
) -> dict[str, Any]:
    """The settings of a unit that depend on its server: memory, devices, folders, addresses.

    gpu_access is true, false or "auto", which is true if the plan puts layers on a GPU. user_namespaces says whether
    the host's kernel allows them. allow_addresses may reach the server besides its host; empty means all.
    """
    argv = [str(word) for word in server["argv"]]
    has_gpu = uses_gpu(server, gpu_access)
    sandbox = _sandbox(server)
    shows = sandbox.get("shows", [])
    shown = {str(show["path"]) for show in shows}
    host, port = listening_place(server)
    binds = systemd_version is not None and systemd_version >= SOCKET_BIND_VERSION
    handed_over = (flag_value(argv, "--api-key-file") or "").startswith(f"{CREDENTIALS}/")
    return {
        "LoadCredential": _credential(str(server["api_key_file"])) if handed_over else None,
        "MemoryMax": server.get("memory_max_bytes") or None,
        # A server that swaps is slower than one that is restarted, and takes the host along.
        "MemorySwapMax": 0 if server.get("memory_max_bytes") else None,
        "TasksMax": TASKS_MAX,
        "LimitMEMLOCK": "infinity" if locks_memory(argv) else None,
        "NUMAPolicy": numa_policy,
        "NUMAMask": numa_mask,
        "ReadOnlyPaths": _existing(folder for folder in model_folders(argv) if not is_below(folder, shown)),
        "ReadWritePaths": _existing({*flag_values(argv, WRITE_FLAGS)} - shown),
        "ProtectHome": _protect_home(sandbox),
        "PrivateTmp": TMP not in sandbox.get("opens", []),
        "BindReadOnlyPaths": systemd_binds([show for show in shows if not show["writable"]]),
        "BindPaths": systemd_binds([show for show in shows if show["writable"]]),
        "PrivateDevices": not has_gpu,
        # Drivers of GPUs need the host's own users and place threads and memory.
        "PrivateUsers": True if user_namespaces and not has_gpu else None,
        "SystemCallFilter": None if has_gpu or _places_itself(argv) else "~@resources",
        "DeviceAllow": [f"{device} rw" for device in GPU_DEVICES] if has_gpu else [],
        "SupplementaryGroups": _gpu_groups(server) if has_gpu else [],
        # Drivers keep the kernels that they compile there: without it each start compiles them again.
        "CacheDirectory": f"{GPU_CACHE}/{server['name']}" if has_gpu else None,
        "CacheDirectoryMode": "0700" if has_gpu else None,
        "Environment": f"HOME=/var/cache/{GPU_CACHE}/{server['name']}" if has_gpu else None,
        # GPU drivers compile kernels at run time, into executable memory.
        "MemoryDenyWriteExecute": not has_gpu,
        "SocketBindDeny": "any" if binds else None,
        "SocketBindAllow": f"tcp:{port}" if binds else None,
        **unit_addresses(host, argv, allow_addresses),
    }


def _existing(paths: Iterable[str]) -> list[str]:
    """Return each path as a setting's value, which does not count where the path is missing."""
    return [systemd_paths([f"-{path}"]) for path in sorted(paths)]


def _sandbox(server: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the plan has found that the sandbox must show."""
    sandbox: Mapping[str, Any] = server.get("sandbox") or {}
    return sandbox


def _protect_home(sandbox: Mapping[str, Any]) -> str | bool:
    if HOME in sandbox.get("opens", []):
        return "read-only"
    # In an empty home, and only there, further paths can be shown.
    return "tmpfs" if any(is_below(str(show["path"]), HOMES) for show in sandbox.get("shows", [])) else True


def _gpu_groups(server: Mapping[str, Any]) -> list[str]:
    """The groups that the plan has found on the GPUs' device nodes."""
    groups = str((server.get("env") or {}).get("MAGI_LLAMA_GPU_GROUPS", "")).split(",")
    return [group for group in groups if re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", group)]


def locks_memory(argv: Sequence[str]) -> bool:
    return "--mlock" in argv or "mlock" in (flag_value(argv, "--load-mode") or "")


def _places_itself(argv: Sequence[str]) -> bool:
    return any(word.startswith(PLACEMENT_FLAGS) for word in argv)


def _credential(path: str) -> str:
    # All that is behind the colon is the path; only specifiers have a meaning in it.
    return f"{KEY_CREDENTIAL}:{path.replace('%', '%%')}"


def model_folders(argv: Sequence[str]) -> list[str]:
    """The folders of the model's files in a command line."""
    paths = [value for value in flag_values(argv, PATH_FLAGS) if value.startswith("/")]
    return sorted({os.path.dirname(path) for path in paths} - {"/"})


def uses_gpu(server: Mapping[str, Any], gpu_access: Any) -> bool:
    return (
        server["memory"].get("vram_bytes", 0) > 0
        if gpu_access == "auto"
        else parse_bool("servers_gpu_access", gpu_access)
    )
