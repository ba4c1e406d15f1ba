# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read listening ports, managed servers and memory from /proc."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import re
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .documents import NAME
from .ownership import is_trusted
from .text import visible_line

STATE_MARKER = "MAGI_LLAMA_STATE"
NAME_MARKER = "MAGI_LLAMA_SERVER"
MARKER_PREFIX = "MAGI_LLAMA_"
# In the state directory; it has the users that servers run as.
RECORD_FILE = "deployment.json"
# The reason for the restart of a process that another service manager has started begins with this.
MANAGER_CHANGED = "service manager changed"
# These variables override a server's command line. Only names are kept: a value may be an API key.
STRAY_VARIABLE = re.compile(r"^(LLAMA_ARG_\w+|LLAMA_API_KEY|AIP_\w+)=", re.MULTILINE)

TCP_LISTEN = "0A"
TCP_ESTABLISHED = "01"
COMMAND_LENGTH = 200
# The control group of a server's unit: only root puts processes there.
UNIT_GROUP = "/system.slice/magi-llama-{name}.service/"
LOADER = re.compile(r"ld-(linux|musl)[^/]*$")


@dataclass(frozen=True)
class Listener:
    """A listening TCP port. pid and command are None if only root may see the process.

    pids lists every process with a socket on the port: SO_REUSEPORT allows several. uids are the users whose sockets
    they are, which every user may see.
    """

    port: int
    addresses: tuple[str, ...]
    pid: int | None
    command: str | None
    pids: tuple[int, ...] = ()
    uids: tuple[int, ...] = ()

    @property
    def holder(self) -> str:
        """Return the listening process as text for messages."""
        return "a process that only root may see" if self.pid is None else f"pid {self.pid} ({self.command})"


@dataclass(frozen=True)
class Process:
    """A managed server's process. env has its MAGI_LLAMA_* variables, stray the names of STRAY_VARIABLE matches.

    children are the PIDs of its child processes: a wrapper script starts llama-server as a child.
    """

    pid: int
    ppid: int
    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    uid: int
    started_at: float
    uptime_seconds: float
    rss_bytes: int
    stray: tuple[str, ...] = ()
    children: tuple[int, ...] = ()


@dataclass(frozen=True)
class Memory:
    """Total and available memory for processes on this host or in this container."""

    total_bytes: int
    available_bytes: int


def listeners(ports: Iterable[int], proc: str = "/proc", first: Sequence[int] = ()) -> dict[int, Listener]:
    """Return the listener of each of these ports; free ports are omitted.

    first lists the PIDs that probably hold them: checking these first avoids a scan of all processes.
    """
    wanted = set(ports)
    sockets: dict[str, tuple[int, str, int]] = {}
    for table in ("tcp", "tcp6"):
        for port, address, inode, uid in _listening(_read(f"{proc}/net/{table}")):
            if port in wanted:
                sockets[inode] = (port, address, uid)
    holders = _socket_holders(set(sockets), proc, first)

    found = {}
    for port in sorted({port for port, _bound, _uid in sockets.values()}):
        inodes = [inode for inode, (other, _bound, _uid) in sockets.items() if other == port]
        addresses = tuple(dict.fromkeys(sockets[inode][1] for inode in inodes))
        pids = tuple(sorted({pid for inode in inodes for pid in holders.get(inode, ())}))
        pid = pids[0] if pids else None
        uids = tuple(sorted({sockets[inode][2] for inode in inodes}))
        found[port] = Listener(port, addresses, pid, None if pid is None else command_of(pid, proc), pids, uids)
    return found


def _listening(table: str) -> list[tuple[int, str, str, int]]:
    """Return (port, address, inode, user id) of each listening socket in the text of /proc/net/tcp or tcp6."""
    rows = (line.split() for line in table.splitlines()[1:])
    return [
        (int(local.rsplit(":", 1)[1], 16), _address(local.rsplit(":", 1)[0]), row[9], int(row[7]))
        for row in rows
        if len(row) > 9 and row[3] == TCP_LISTEN
        for local in (row[1],)
    ]


def connections(ports: Iterable[int], proc: str = "/proc") -> dict[int, int]:
    """Return how many established TCP connections each of these ports of this machine has."""
    found = dict.fromkeys(ports, 0)
    for table in ("tcp", "tcp6"):
        for row in map(str.split, _read(f"{proc}/net/{table}").splitlines()[1:]):
            if len(row) > 3 and row[3] == TCP_ESTABLISHED and (port := int(row[1].rsplit(":", 1)[1], 16)) in found:
                found[port] += 1
    return found


def _address(hexadecimal: str) -> str:
    # The kernel prints each 32-bit word of the address as a number in the machine's own byte order.
    words = [int(hexadecimal[at : at + 8], 16) for at in range(0, len(hexadecimal), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))


def _socket_holders(inodes: set[str], proc: str, first: Sequence[int]) -> dict[str, set[int]]:
    holders: dict[str, set[int]] = {}
    if not inodes:
        return holders
    likely = list(first)
    for pids in (likely, [pid for pid in _pids(proc) if pid not in set(likely)]):
        for pid in pids:
            for inode in _socket_inodes(pid, proc) & inodes:
                holders.setdefault(inode, set()).add(pid)
        if set(holders) == inodes:
            break
    return holders


def _socket_inodes(pid: int, proc: str) -> set[str]:
    inodes: set[str] = set()
    folder = f"{proc}/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return inodes
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    return inodes


def owner_of(pid: int, proc: str = "/proc") -> int | None:
    """Return the user id of a process; None if it has ended."""
    match = re.search(r"^Uid:\s+(\d+)", _read(f"{proc}/{pid}/status"), re.MULTILINE)
    return int(match.group(1)) if match else None


def command_of(pid: int, proc: str = "/proc") -> str | None:
    """Return a process's command line on one line, truncated; None if the process has ended."""
    argv = _nul_separated(_read(f"{proc}/{pid}/cmdline")) or _read(f"{proc}/{pid}/comm").split("\n")[:1]
    return visible_line(" ".join(argv), COMMAND_LENGTH) or None


def processes(state_dir: str, proc: str = "/proc") -> dict[str, Process]:
    """Return the running servers of this state directory, by name; of duplicates the oldest, which holds the port."""
    found: dict[str, Process] = {}
    for process in sorted(all_processes(state_dir, proc), key=lambda process: process.started_at):
        found.setdefault(process.name, process)
    return found


def all_processes(state_dir: str, proc: str = "/proc", pids: Iterable[int] | None = None) -> list[Process]:
    """Return every process of this state directory's servers, children merged; pids limits the search.

    It has the directory's mark, a valid name, and the servers' user or root: any user can set the variables.
    """
    uids = servers_uids(state_dir)
    marked = {
        process.pid: process
        for process in _marked(state_dir, proc, pids)
        if NAME.fullmatch(process.name) and (uids is None or process.uid in uids)
    }
    families: dict[int, list[int]] = {}
    for pid in marked:
        families.setdefault(_eldest(pid, marked), []).append(pid)
    return [
        replace(marked[pid], children=tuple(sorted(set(members) - {pid}))) if len(members) > 1 else marked[pid]
        for pid, members in families.items()
    ]


def foreign_marks(state_dir: str, proc: str = "/proc") -> list[str]:
    """Return a message for each process that has the mark of this state directory and is not one of its servers."""
    uids = servers_uids(state_dir)
    found = []
    for process in _marked(state_dir, proc, None):
        if not NAME.fullmatch(process.name):
            why = f"its name {visible_line(process.name, 80)} is not one of a server"
        elif uids is not None and process.uid not in uids:
            why = f"it runs as another user (uid {process.uid})"
        else:
            continue
        found.append(
            f"pid {process.pid} ({command_of(process.pid, proc)}) has the mark of this deployment, but {why}: it is "
            "not counted as a server. Find out who has started it."
        )
    return found


def servers_uids(state_dir: str) -> frozenset[int] | None:
    """Return the ids of root, this user and the users that servers run as; None if no deployment names them yet."""
    path = os.path.join(state_dir, RECORD_FILE)
    try:
        stat = os.stat(path)
    except OSError:
        return None
    users = _recorded_users(path, stat.st_mtime_ns, stat.st_ino)
    if users is None:
        return None
    uids = {0, os.geteuid()}
    for user in users:
        with contextlib.suppress(KeyError):
            uids.add(pwd.getpwnam(user).pw_uid)
    return frozenset(uids)


@functools.lru_cache(maxsize=4)
def _recorded_users(path: str, _mtime_ns: int, _inode: int) -> tuple[str, ...] | None:
    try:
        users = json.loads(_read(path))["deployed"]["users"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return tuple(user for user in users if isinstance(user, str)) if isinstance(users, list) else None


def _marked(state_dir: str, proc: str, pids: Iterable[int] | None) -> list[Process]:
    """Return every process with the state directory's mark on this machine or in this container, from any user."""
    marker = f"{STATE_MARKER}={state_dir}"
    own = _pid_namespace("self", proc)
    marked = []
    for pid in _pids(proc) if pids is None else pids:
        # Unreadable for other users' processes, which are skipped.
        environment = _nul_separated(_read(f"{proc}/{pid}/environ"))
        if marker not in environment:
            continue
        process = _process(pid, environment, proc)
        if process is not None and (_pid_namespace(str(pid), proc) == own or is_in_own_unit(pid, process.name, proc)):
            marked.append(process)
    return marked


def programs_by_state(proc: str = "/proc") -> dict[str, set[str]]:
    """Return the programs of all running servers on this host, by the state directory that they belong to.

    Any user can set the variables. A state directory that root must not trust is left out; a program counts only if
    root, this user, or a user whom the state directory names runs it.
    """
    found: dict[str, set[str]] = {}
    own = _pid_namespace("self", proc)
    for pid in _pids(proc):
        environment = _nul_separated(_read(f"{proc}/{pid}/environ"))
        state = next((text.partition("=")[2] for text in environment if text.startswith(f"{STATE_MARKER}=")), None)
        argv = _nul_separated(_read(f"{proc}/{pid}/cmdline"))
        # What is in an untrusted folder is not even opened: it may be a pipe.
        if state and argv and _is_of_this_host(pid, environment, own, proc) and is_trusted(state):
            programs = found.setdefault(state, set())
            if owner_of(pid, proc) in (servers_uids(state) or {0, os.geteuid()}):
                programs.add(_without_loader(argv)[0])
    return found


def _is_of_this_host(pid: int, environment: Sequence[str], own: str | None, proc: str) -> bool:
    name = next((text.partition("=")[2] for text in environment if text.startswith(f"{NAME_MARKER}=")), "")
    return _pid_namespace(str(pid), proc) == own or is_in_own_unit(pid, name, proc)


def is_in_own_unit(pid: int, name: str, proc: str = "/proc") -> bool:
    """Whether a process in another PID namespace is in a container that this host's unit of the server has started.

    Other processes in containers are visible too, and may have the same state directory path in their own file system.
    """
    groups = _read(f"{proc}/{pid}/cgroup").splitlines()
    return bool(name) and any(
        group.split(":", 2)[-1].startswith(UNIT_GROUP.format(name=name)) for group in groups if group.count(":") > 1
    )


def _eldest(pid: int, marked: Mapping[int, Process]) -> int:
    """Return the PID of the topmost ancestor with the same server name."""
    while (parent := marked.get(marked[pid].ppid)) is not None and parent.name == marked[pid].name:
        pid = parent.pid
    return pid


def _pid_namespace(pid: str, proc: str) -> str | None:
    try:
        return os.readlink(f"{proc}/{pid}/ns/pid")
    except OSError:
        return None


def _process(pid: int, environment: Sequence[str], proc: str) -> Process | None:
    entries = [entry for entry in environment if entry.startswith(MARKER_PREFIX) and "=" in entry]
    # Bytes that are not UTF-8 cannot be in a result, and no value of ours has them.
    env = {key: value for key, _equals, value in (entry.partition("=") for entry in entries) if is_utf8(value)}
    name = next((entry.partition("=")[2] for entry in entries if entry.startswith(f"{NAME_MARKER}=")), None)
    argv = _nul_separated(_read(f"{proc}/{pid}/cmdline"))
    status = dict(re.findall(r"^(\w+):\s+(\d+)", _read(f"{proc}/{pid}/status"), re.MULTILINE))
    # The command name, in parentheses, may contain any character; the fields after the last ")" are numbers.
    stat = _read(f"{proc}/{pid}/stat").rpartition(")")[2].split()
    if name is None or not argv or len(stat) < 20 or "PPid" not in status:
        # The process is a zombie, or ended while it was read.
        return None
    started_after_boot = int(stat[19]) / os.sysconf("SC_CLK_TCK")
    boot = re.search(r"^btime (\d+)", _read(f"{proc}/stat"), re.MULTILINE)
    uptime = _read(f"{proc}/uptime").split()
    return Process(
        pid=pid,
        ppid=int(status["PPid"]),
        name=name,
        argv=_without_loader(argv),
        env=env,
        uid=int(status.get("Uid", 0)),
        started_at=(int(boot.group(1)) if boot else 0) + started_after_boot,
        # From the monotonic clock, so that setting the clock does not change it.
        uptime_seconds=max(0.0, float(uptime[0]) - started_after_boot) if uptime else 0.0,
        rss_bytes=int(status.get("VmRSS", 0)) * 1024,
        stray=tuple(sorted(entry.split("=", 1)[0] for entry in environment if STRAY_VARIABLE.match(entry))),
    )


def is_utf8(text: str) -> bool:
    """Whether text that was read with surrogateescape has no bytes that are not UTF-8."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def _without_loader(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command line without the dynamic loader, if the program was started through one."""
    if not LOADER.search(argv[0]):
        return tuple(argv)
    name, at = None, 1
    while at + 1 < len(argv) and argv[at].startswith("--"):
        if argv[at] == "--argv0":
            name = argv[at + 1]
        at += 2
    return (name or argv[at], *argv[at + 1 :]) if at < len(argv) else tuple(argv)


def memory(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> Memory:
    """Return the host's memory, or the cgroup's limit if it is lower."""
    values = {key: int(size) * 1024 for key, size in re.findall(r"^(\w+):\s+(\d+)", _read(f"{proc}/meminfo"), re.M)}
    total = values.get("MemTotal", 0)
    available = values.get("MemAvailable", values.get("MemFree", 0))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _read(f"{cgroup}/{name}").strip()
        if limit.isdigit():
            total, available = min(total, int(limit)), min(available, int(limit))
    return Memory(total, available)


def _pids(proc: str) -> list[int]:
    return sorted(int(name) for name in os.listdir(proc) if name.isdigit())


def _nul_separated(text: str) -> list[str]:
    # Each word ends with a NUL; the last word may be empty.
    return (text[:-1] if text.endswith("\0") else text).split("\0") if text else []


def _read(path: str) -> str:
    """Return a file's text; empty if it is missing or unreadable, or its process has ended."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError:
        return ""
