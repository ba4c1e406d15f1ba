# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether servers are healthy: asked at once, and asked again until each is ready, dead or out of time."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from ._proc import Listener, Process, command_of, listeners
from ._service import ServiceStatus

Server = Mapping[str, Any]

PROBE_TIMEOUT = 1.0
DEEP_TIMEOUT = 30.0
PROBES_AT_ONCE = 8
# Servers that load at the same time spin their threads against each other: twenty on two processors take twice as long,
# and four times the work, as when each has its moment. A large model needs longer than that and is not waited for.
LOAD_PATIENCE = 0.25
LOAD_POLL = 0.02
# A port that another process answers on: long enough for one of ours that is just ending.
FOREIGN_PATIENCE = 2.0
# A process that is ready at first sight and older than this became so when nobody looked.
FRESH_SECONDS = 5.0
FIRST_POLL = 0.05
# Asking again after a twentieth of the time waited so far finds a server within 5 % of when it became ready.
POLL_SHARE = 0.05
LOG_LINES = 20
MESSAGE_LINES = 8

TOKEN_REQUESTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "embedding": ("/v1/embeddings", {"input": "hello"}, "data"),
    "reranker": ("/v1/rerank", {"query": "hello", "documents": ["hello"]}, "results"),
    "model": ("/completion", {"prompt": "Hello", "n_predict": 1}, "content"),
}

# What llama-server writes when it gives up, and what to do about it.
CAUSES = (
    (
        r"couldn't bind HTTP server socket|[Aa]ddress already in use",
        "its port is taken by another process: stop that one, or run with -e servers_move_on_conflict=true",
    ),
    (
        r"invalid argument: (?P<what>\S+)|unknown argument: (?P<what2>\S+)",
        "this llama-server does not know the flag {what}: remove it from the profile, or update llama-server",
    ),
    (
        r"error while handling argument \"(?P<what>[^\"]+)\"",
        "the value of {what} in the profile's parameters is not one that llama-server takes",
    ),
    (
        r"bad_alloc|out of memory|OutOfDeviceMemory|ErrorOutOfHostMemory|failed to allocate|cannot allocate memory",
        "there is not enough memory: lower ctx_size, parallel or n_gpu_layers, or enable fewer models",
    ),
    (
        r"failed to open GGUF file '(?P<what>.+)' \(Permission denied\)|'(?P<what2>.+)' \(?Permission denied",
        "the servers' user may not read {what}: mend its permissions and those of the folders above it",
    ),
    (
        r"failed to open GGUF file '(?P<what>.+)' \(No such file or directory\)",
        "{what} is gone: bring it back, or run site.yml for a new scan",
    ),
    (
        r"invalid magic|not within the file bounds|exceeds remaining file size|failed to read key-value|corrupted",
        "the model's file is damaged or incomplete: download it again",
    ),
    (
        r"unknown model architecture: '(?P<what>[^']+)'",
        "this llama-server does not know the architecture {what}: update it",
    ),
    (r"couldn't exec|error while loading shared libraries", "llama-server itself cannot run: look at the runtime role"),
    (r"couldn't setuid", "the service manager may not run servers as their user: run with --become"),
)


@dataclass(frozen=True)
class Probe:
    """What a server answered.

    state: ready, loading, not_listening, wrong_identity (another process or model answers), hung (no answer in time),
    unhealthy (another answer than ready or loading).
    """

    state: str
    detail: str | None = None
    # To the answer that the deep check asks for.
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Where waiting for one server has got. seconds_to_ready counts from the start of its process."""

    name: str
    port: int
    tier: str | None
    pid: int | None
    state: str
    is_ready: bool = False
    is_settled: bool = False
    seconds_to_ready: float | None = None
    token_seconds: float | None = None
    restarts: int = 0
    exit_code: int | None = None
    exit_text: str | None = None
    detail: str | None = None
    fix: str | None = None
    log_tail: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "log_tail": list(self.log_tail)}


class Host(Protocol):
    """The edge to the machine: what waiting needs to see."""

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]: ...

    def probe(self, servers: Sequence[Server], pids: Mapping[str, int | None]) -> dict[str, Probe]: ...

    def uptime(self, pid: int) -> float | None: ...

    def log_tail(self, name: str, lines: int) -> list[str]: ...


def probe(server: Server, pid: int | None, *, deep: bool = False, timeout: float = PROBE_TIMEOUT) -> Probe:
    """Ask one server; pid is the process that should answer."""
    return probe_all([server], {server["name"]: pid}, deep=deep, timeout=timeout)[str(server["name"])]


def probe_all(
    servers: Sequence[Server],
    pids: Mapping[str, int | None],
    *,
    deep: bool = False,
    timeout: float = PROBE_TIMEOUT,
    deep_timeout: float = DEEP_TIMEOUT,
) -> dict[str, Probe]:
    """Ask servers at the same time: health, then whether the process and the model that answer are the planned ones.

    deep asks for a token too, and waits deep_timeout for it.
    """
    token_timeout = deep_timeout if deep else None
    if not servers:
        return {}
    with ThreadPoolExecutor(max_workers=min(PROBES_AT_ONCE, len(servers))) as pool:
        found = dict(zip((str(server["name"]) for server in servers), pool.map(lambda s: _health(s, timeout), servers)))
        answering = [
            server for server in servers if found[str(server["name"])].state not in ("loading", "not_listening")
        ]
        # Looked up once for all: the kernel takes long to list its sockets.
        found.update(_foreign(answering, pids))
        ready = [server for server in answering if found[str(server["name"])].state == "ready"]
        found.update(
            zip((str(server["name"]) for server in ready), pool.map(lambda s: _works(s, token_timeout, timeout), ready))
        )
        return found


class Pace:
    """The pace of starts: each server has the machine to itself until it is ready, and for a moment at most.

    ready are the seconds to readiness of those that were seen to be ready meanwhile, by name: who looks after the last
    start only would count the other starts too.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.ready: dict[str, float] = {}
        self._clock, self._sleep = clock, sleep
        self._loading: dict[str, tuple[Server, float]] = {}

    def begun(self, server: Server, *, last: bool) -> None:
        """To be called with each server when its process has been started; waits before the next, if there is one."""
        name, now = str(server["name"]), self._clock()
        self._loading[name] = (server, now)
        if last:
            return
        while not self._look(name) and self._clock() < now + LOAD_PATIENCE:
            self._sleep(LOAD_POLL)
        for earlier in [other for other in self._loading if other != name]:
            self._look(earlier)

    def _look(self, name: str) -> bool:
        server, began = self._loading[name]
        if _health(server, LOAD_PATIENCE).state != "ready":
            return False
        self.ready[name] = round(self._clock() - began, 2)
        del self._loading[name]
        return True


def _health(server: Server, timeout: float) -> Probe:
    try:
        code, _body = _ask(server, "GET", "/health", timeout)
    except ConnectionRefusedError:
        return Probe("not_listening")
    except socket.timeout:
        return Probe("hung", f"no answer within {timeout:g} s")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Probe("hung", f"{type(error).__name__}: {error}")
    return {200: Probe("ready"), 503: Probe("loading")}.get(code, Probe("unhealthy", f"/health answered {code}"))


def _works(server: Server, token_timeout: float | None, timeout: float) -> Probe:
    try:
        other = _other_model(server, timeout)
        if other or token_timeout is None:
            return other or Probe("ready")
        began = time.monotonic()
        return _no_token(server, token_timeout) or Probe("ready", seconds=round(time.monotonic() - began, 3))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Probe("hung", f"/health is 200, but asked for more it does not answer: {type(error).__name__} {error}")


def _foreign(servers: Sequence[Server], pids: Mapping[str, int | None]) -> dict[str, Probe]:
    """A finding for each server on whose port any other process than its own has a socket."""
    ours = {int(server["port"]): pid for server in servers if (pid := pids.get(server["name"])) is not None}
    held = listeners(ours, first=list(ours.values())) if ours else {}
    found = {}
    for server in servers:
        listener = held.get(int(server["port"]))
        if listener is None or listener.pid is None:
            continue
        pid = ours[listener.port]
        # A server may have children that hold its socket; they are no strangers.
        others = [other for other in listener.pids if other != pid and not _descends(other, pid)]
        if others:
            shared = " as well" if pid in listener.pids else ""
            detail = f"port {listener.port} is held by pid {others[0]}{shared} ({command_of(others[0])})"
            found[str(server["name"])] = Probe("wrong_identity", detail)
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                pid = int(stream.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return False
    return pid == ancestor


def _other_model(server: Server, timeout: float) -> Probe | None:
    planned = _flag(server["argv"], "--model")
    code, body = _ask(server, "GET", "/props", timeout)
    answered = body.get("model_path") if code == 200 and isinstance(body, dict) else None
    # Without a key that we may read, or with a build that does not tell, the process is proof enough.
    if not answered or not planned or answered == planned or os.path.realpath(answered) == os.path.realpath(planned):
        return None
    return Probe("wrong_identity", f"the server on port {server['port']} serves {answered}, planned is {planned}")


def _no_token(server: Server, timeout: float) -> Probe | None:
    path, body, wanted = TOKEN_REQUESTS.get(str(server.get("kind")), TOKEN_REQUESTS["model"])
    try:
        code, answer = _ask(server, "POST", path, timeout, body)
    except socket.timeout:
        return Probe("hung", f"/health is 200, but {path} gave no answer within {timeout:g} s")
    if code == 200 and isinstance(answer, dict) and wanted in answer:
        return None
    return Probe("unhealthy", f"/health is 200, but {path} answered {code}: {json.dumps(answer)[:200]}")


def _flag(argv: Sequence[str], flag: str) -> str | None:
    return next((value for word, value in zip(argv, argv[1:]) if word == flag), None)


def _ask(server: Server, method: str, path: str, timeout: float, body: Any = None) -> tuple[int, Any]:
    """A request to the server with its API key; the status and the JSON answered, None where it is none."""
    headers = {"Content-Type": "application/json", "Connection": "close"}
    key = _api_key(server.get("api_key_file"))
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection(asked_address(str(server["host"])), int(server["port"]), timeout=timeout)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, None


def asked_address(host: str) -> str:
    """Where to ask a server that listens on host."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))


def _api_key(path: str | None) -> str | None:
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            return next((line.strip() for line in stream if line.strip()), None)
    except OSError:
        return None


def wait(
    servers: Sequence[Server],
    host: Host,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    interval: float,
    timeout: float | None = None,
    slice_seconds: float | None = None,
    elapsed: float = 0.0,
    baseline: Mapping[str, int] | None = None,
) -> list[Outcome]:
    """Wait until every server is settled, that is ready, dead or out of time, or until the slice is over.

    timeout is for each server, by default its max_startup_time. elapsed are the seconds that earlier slices waited, and
    baseline the restarts that they saw first, by name: a rise is a crash.
    """
    began = clock()
    first_restarts = dict(baseline or {})
    outcomes: dict[str, Outcome] = {}
    foreign_since: dict[str, float] = {}
    seen_waiting = {str(server["name"]) for server in servers} if elapsed else set()
    pending = list(servers)
    while True:
        statuses = host.status([server["name"] for server in pending])
        alive = [server for server in pending if statuses[server["name"]].is_alive]
        probes = host.probe(alive, {name: status.pid for name, status in statuses.items()})
        now = clock()
        for server in pending:
            name = server["name"]
            status, answer = statuses[name], probes.get(name)
            restarts = first_restarts.setdefault(name, status.restarts)
            if answer is not None and answer.state == "wrong_identity":
                foreign_since.setdefault(name, now)
            else:
                foreign_since.pop(name, None)
            limit = float(server["max_startup_time"]) if timeout is None else timeout
            outcomes[name] = _outcome(
                server,
                status,
                answer,
                host,
                crashed=status.restarts > restarts,
                watched=name in seen_waiting,
                foreign_for=now - foreign_since.get(name, now),
                late=limit if elapsed + now - began >= limit else None,
            )
        pending = [server for server in pending if not outcomes[server["name"]].is_settled]
        # One that is hung may have been ready for long.
        seen_waiting.update(name for name, outcome in outcomes.items() if outcome.state in ("loading", "not_listening"))
        passed = now - began
        over = slice_seconds is not None and passed >= slice_seconds
        if not pending or over:
            return [outcomes[server["name"]] for server in servers]
        pause = min(max(FIRST_POLL, POLL_SHARE * (elapsed + passed)), interval)
        sleep(pause if slice_seconds is None else min(pause, slice_seconds - passed))


def _outcome(
    server: Server,
    status: ServiceStatus,
    answer: Probe | None,
    host: Host,
    *,
    crashed: bool,
    watched: bool,
    foreign_for: float,
    late: float | None,
) -> Outcome:
    name, port, tier = str(server["name"]), int(server["port"]), server.get("tier")
    if answer is not None and answer.state == "ready" and not crashed:
        uptime = host.uptime(status.pid) if status.pid else None
        seconds = round(uptime, 2) if uptime is not None and (watched or uptime <= FRESH_SECONDS) else None
        return Outcome(name, port, tier, status.pid, "ready", True, True, seconds, answer.seconds, status.restarts)
    detail: str | None
    if answer is None or crashed:
        state, detail = "failed", _death(status, crashed)
    elif answer.state == "wrong_identity" and foreign_for >= FOREIGN_PATIENCE:
        state, detail = answer.state, answer.detail
    elif late is not None:
        state, detail = answer.state, f"not ready after {late:g} s" + (f": {answer.detail}" if answer.detail else "")
    else:
        return Outcome(name, port, tier, status.pid, answer.state, restarts=status.restarts, detail=answer.detail)
    tail = host.log_tail(name, LOG_LINES)
    fix = explain(tail, status.exit_code) if state == "failed" else None
    if state == "wrong_identity":
        fix = "stop what answers there, or run with -e servers_move_on_conflict=true"
    return Outcome(
        name,
        port,
        tier,
        status.pid,
        state,
        is_settled=True,
        restarts=status.restarts,
        exit_code=status.exit_code,
        exit_text=status.exit_text,
        detail=detail,
        fix=fix,
        log_tail=tuple(tail),
    )


def _death(status: ServiceStatus, crashed: bool) -> str:
    if crashed:
        return f"it crashed and was restarted {status.restarts} times"
    if status.state == "absent":
        return "the service manager does not know it: run site.yml"
    if status.state == "stopped":
        return "it is stopped" if status.exit_text is None else f"it is stopped ({status.exit_text})"
    return status.exit_text or "it ended"


def explain(log: Sequence[str], exit_code: int | None) -> str | None:
    """The likely cause of a server's end and its fix, None where nothing is recognised."""
    # From the end, as the log may also hold the words of an earlier run.
    for line in reversed(log):
        for pattern, fix in CAUSES:
            match = re.search(pattern, line)
            if match:
                what = next((value for value in match.groupdict().values() if value), "")
                return fix.format(what=what)
    if exit_code == 137:
        return "it was killed, most often for lack of memory: lower ctx_size or parallel, and look at the kernel's log"
    return None


def with_holders(outcomes: Sequence[Outcome], held: Mapping[int, Listener]) -> list[Outcome]:
    """The outcomes, those that ended saying who listens on their port by now."""
    return [
        replace(outcome, detail=f"{outcome.detail}; {_held_by(held[outcome.port])}")
        if outcome.state == "failed" and outcome.pid is None and outcome.port in held
        else outcome
        for outcome in outcomes
    ]


def _held_by(listener: Listener) -> str:
    who = "a process that only root may see" if listener.pid is None else f"pid {listener.pid} ({listener.command})"
    return f"port {listener.port} is held by {who}"


def failure_text(servers: Sequence[Mapping[str, Any]]) -> str:
    """A message that names each server that is not ready, its end, its last lines and the fix."""
    parts = []
    for server in servers:
        if server["is_ready"]:
            continue
        text = f"{server['name']} (port {server['port']}): {server['detail'] or server['state']}"
        if server["fix"]:
            text += f"; {server['fix']}"
        tail = "".join(f"\n    {line}" for line in server["log_tail"][-MESSAGE_LINES:])
        parts.append(text + (f"\n  its last lines:{tail}" if tail else ""))
    return "\n".join(parts)


def status_json(
    servers: Sequence[Server],
    statuses: Mapping[str, ServiceStatus],
    probes: Mapping[str, Probe],
    running: Mapping[str, Process],
) -> dict[str, Any]:
    """The status of all servers, as machines read it."""
    entries = [
        _status_entry(server, statuses[server["name"]], probes.get(server["name"]), running.get(server["name"]))
        for server in servers
    ]
    return {
        "total_servers": len(entries),
        "ready_servers": sum(entry["is_ready"] for entry in entries),
        "servers": entries,
    }


def _status_entry(
    server: Server, status: ServiceStatus, answer: Probe | None, process: Process | None
) -> dict[str, Any]:
    state = status.state
    if answer is not None and state == "running":
        # A process that does not listen yet has just begun.
        state = "starting" if answer.state == "not_listening" else answer.state
    return {
        "name": server["name"],
        "model_id": server["model_id"],
        "display_name": server.get("display_name"),
        "port": server["port"],
        "pid": status.pid,
        "is_ready": state == "ready",
        "tier": server.get("tier"),
        "state": state,
        "uptime_seconds": int(process.uptime_seconds) if process else 0,
        "rss_bytes": process.rss_bytes if process else 0,
        "restarts": status.restarts,
    }


def given_up(outcomes: Sequence[Outcome], statuses: Mapping[str, ServiceStatus]) -> list[str]:
    """Servers that ended with a configuration error and that their manager would still try again."""
    return [
        outcome.name for outcome in outcomes if outcome.exit_code == 1 and statuses[outcome.name].state == "restarting"
    ]


def summary(servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all outcomes come to: complete, ready, failed_servers and msg."""
    ready = sum(bool(server["is_ready"]) for server in servers)
    text = f"{ready} of {len(servers)} servers are ready"
    failures = failure_text(servers)
    return {
        "complete": all(server["is_settled"] for server in servers),
        "ready": ready,
        "failed_servers": [server["name"] for server in servers if not server["is_ready"]],
        "msg": f"{text}\n{failures}" if failures else text,
    }
