# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the units of servers on demand run on the host, as a file of its own: it imports nothing of the collection.

admit STATE_DIR NAME    as root, before a start: whether there is memory for the server; stops idle ones to make room
wait PORT SECONDS PID   as the servers' user, after a start: until the server, which is this process, is healthy
pass PORT PROXY ...     as the servers' user: becomes the proxy, or refuses the requests that wait if the start failed
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ADDRESS = "127.0.0.1"
LOCK = "/run/magi-llama.on-demand.lock"
# So long requests are refused after a start that failed, before another one is tried.
REFUSE_SECONDS = 3.0
POLL_SECONDS = 0.05
COMMAND_SECONDS = 100
MAX_HEAD_BYTES = 1 << 20
# The first socket that systemd passes.
FIRST_SOCKET = 3
ESTABLISHED = "01"
# As the plan reserves for the system: a share of the RAM within bounds, and less in a small container.
RESERVE_SHARE, LEAST_RESERVE_BYTES, MOST_RESERVE_BYTES = 0.05, 256 << 20, 2 << 30
ERROR = {
    "error": {
        "message": "The model could not be started now: its host has no memory for it, or its start failed. Try again.",
        "type": "server_error",
        "param": None,
        "code": "model_not_ready",
    }
}

Server = Mapping[str, Any]


class Awake(NamedTuple):
    """A server on demand that runs: whether it may be stopped for another one, and when it last had a request."""

    server: Server
    is_idle: bool
    last_used: int


class Limits(NamedTuple):
    """The bytes that all servers may need at once; None for what is not limited."""

    ram: int | None
    both: int | None
    gpus: Sequence[int]


def choose(server: Server, others: Sequence[Server], awake: Sequence[Awake], limits: Limits) -> list[str] | None:
    """Return the names of idle servers to stop so that a server fits, least recently used first; None if it cannot.

    others are servers that run all the time.
    """
    staying = list(awake)
    leaving: list[str] = []
    candidates = sorted((one for one in awake if one.is_idle), key=lambda one: one.last_used)
    while not _fits([server, *others, *(one.server for one in staying)], limits):
        if not candidates:
            return None
        gone = candidates.pop(0)
        staying.remove(gone)
        leaving.append(str(gone.server["name"]))
    return leaving


def _fits(servers: Sequence[Server], limits: Limits) -> bool:
    ram = sum(int(server["memory"]["ram_bytes"]) for server in servers)
    vram = sum(int(server["memory"]["vram_bytes"]) for server in servers)
    if (limits.ram is not None and ram > limits.ram) or (limits.both is not None and ram + vram > limits.both):
        return False
    spreads = [list(server["memory"].get("gpu_bytes") or []) for server in servers]
    rows = [row for row in spreads if len(row) == len(limits.gpus)]
    return all(sum(row[place] for row in rows) <= size for place, size in enumerate(limits.gpus))


def usable_ram(total: int, available: int, held: int) -> int:
    """Return the bytes of RAM that servers may have, as the plan counts them. held is what they have now."""
    reserve = min(max(int(total * RESERVE_SHARE), LEAST_RESERVE_BYTES), MOST_RESERVE_BYTES)
    return min(total - min(reserve, total // 8), available + held)


def admit(state_dir: str, name: str) -> int:
    """Return 0 if the server may start, after others were stopped for it where needed; 1 if it may not."""
    # A user who can open a file can lock it.
    with open(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(os.path.join(state_dir, "deployment.json"), encoding="utf-8") as stream:
            record = json.load(stream)["deployed"]
        servers = {str(server["name"]): server for server in record["servers"]}
        limits = record.get("on_demand") or {}
        if name not in servers or "on_demand" not in servers[name]:
            print(f"{name} is not deployed as a server on demand.")
            return 1
        if limits.get("overcommit"):
            return 0
        found = _shown([other for other in servers if other != name])
        resident = [server for server in servers.values() if "on_demand" not in server]
        awake = [
            _awake(servers[other], shown)
            for other, shown in found.items()
            if "on_demand" in servers[other] and shown.get("ActiveState") in ("active", "activating", "deactivating")
        ]
        held = sum(_resident_bytes(int(shown.get("MainPID") or 0)) for shown in found.values())
        total, available = _memory()
        room = Limits(usable_ram(total, available, held), limits.get("budget_bytes"), limits.get("gpu_bytes") or [])
        leaving = choose(servers[name], resident, awake, room)
        if leaving is None:
            print(f"There is no memory for {name}, and no idle server that could make room: {_need(servers[name])}.")
            return 1
        if leaving:
            print(f"{', '.join(leaving)} makes room for {name}.")
            units = [f"magi-llama{unit}{other}.service" for other in leaving for unit in (".wake.", "-")]
            _run("systemctl", "stop", *units)
        return 0


def _need(server: Server) -> str:
    memory = server["memory"]
    return (
        f"it needs {int(memory['ram_bytes']) >> 20} MiB of RAM and {int(memory['vram_bytes']) >> 20} MiB of GPU memory"
    )


def _awake(server: Server, shown: Mapping[str, str]) -> Awake:
    part = server["on_demand"]
    is_idle = shown.get("ActiveState") == "active" and not part["pinned"] and not _has_connections(int(part["port"]))
    return Awake(server, is_idle, _last_used(str(server["name"]), shown) if is_idle else 0)


def _shown(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the properties of servers' units, by name."""
    properties = "Id,ActiveState,MainPID,ActiveEnterTimestampMonotonic"
    if not names:
        return {}
    output = _run("systemctl", "show", "-p", properties, "--", *(f"magi-llama-{name}.service" for name in names))
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in output.split("\n\n")]
    by_unit = {block.get("Id"): block for block in blocks}
    return {name: by_unit.get(f"magi-llama-{name}.service", {}) for name in names}


def _last_used(name: str, shown: Mapping[str, str]) -> int:
    """Return when a server logged its last line, which it does for each request; else its start. Microseconds."""
    command = ["journalctl", "--quiet", "--no-pager", "-b", "-o", "json", "--output-fields=PRIORITY", "-n", "1"]
    try:
        entry = json.loads(_run(*command, "-u", f"magi-llama-{name}.service", "-t", name))
        return int(entry["__MONOTONIC_TIMESTAMP"])
    except (ValueError, KeyError, TypeError):
        return int(shown.get("ActiveEnterTimestampMonotonic") or 0)


def _has_connections(port: int) -> bool:
    """Return whether any client is connected to a server. A request has a connection until its answer is complete."""
    with open("/proc/net/tcp", encoding="ascii") as stream:
        rows = [line.split() for line in stream.readlines()[1:]]
    return any(row[3] == ESTABLISHED and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def _memory() -> tuple[int, int]:
    with open("/proc/meminfo", encoding="ascii") as stream:
        found = {key: int(size) * 1024 for key, size in re.findall(r"^(\w+):\s+(\d+)", stream.read(), re.MULTILINE)}
    return found["MemTotal"], found["MemAvailable"]


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _run(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=COMMAND_SECONDS, check=True
    ).stdout


def wait(port: int, seconds: float, main_pid: int) -> int:
    """Return 0 once the server is healthy; 1 if it has ended or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(ADDRESS, port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return 0
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        try:
            os.kill(main_pid, 0)
        except ProcessLookupError:
            return 1
        except PermissionError:
            pass
        time.sleep(POLL_SECONDS)
    print(f"not healthy after {seconds:g} s")
    return 1


def pass_on(port: int, command: Sequence[str]) -> int:
    """Become the proxy. If no server listens, answer what waits, so that the next request starts it again."""
    try:
        socket.create_connection((ADDRESS, port), 2).close()
    except OSError:
        refuse(socket.socket(fileno=FIRST_SOCKET), REFUSE_SECONDS)
        return 0
    os.execv(command[0], list(command))


def refuse(listener: socket.socket, seconds: float) -> None:
    """Answer each request with 503 for some seconds."""
    body = json.dumps(ERROR).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            connection = listener.accept()[0]
        except OSError:
            continue
        with connection:
            connection.settimeout(1)
            try:
                _read_head(connection)
                connection.sendall(head + body)
                connection.shutdown(socket.SHUT_WR)
                # A socket with unread bytes is reset, and the answer with it.
                connection.settimeout(0.2)
                while connection.recv(1 << 16) and time.monotonic() < end:
                    pass
            except OSError:
                continue


def _read_head(connection: socket.socket) -> None:
    found = b""
    while b"\r\n\r\n" not in found and len(found) < MAX_HEAD_BYTES:
        part = connection.recv(1 << 16)
        if not part:
            return
        found += part


def main(words: Sequence[str]) -> int:
    """Run the command in these words."""
    if words[0] == "admit":
        return admit(words[1], words[2])
    if words[0] == "wait":
        return wait(int(words[1]), float(words[2]), int(words[3]))
    return pass_on(int(words[1]), words[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
