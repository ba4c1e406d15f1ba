# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Check that a server answers, and that the planned process and model answer."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .._core.argv import flag_value
from .._core.exchange import request
from .._core.places import listening_place
from .._core.processes import command_of, listeners, owner_of
from .._core.text import clean_text, visible_line
from .._launch.api_keys import first_key

Server = Mapping[str, Any]

PROBE_TIMEOUT = 1.0
DEEP_TIMEOUT = 30.0
PROBES_AT_ONCE = 8
NO_PROCESS = "its service manager names no process of it, so nothing was sent to its port"
_TIMINGS = ("predicted_n", "predicted_ms")
MAX_TOKENS_PER_SECOND = 1e6
# The longest answers that are read: of /health, and of other requests. /props has the chat template.
MAX_HEALTH_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 2**20

# Enough to measure the speed, and little work also for a large model on the CPU.
PROBE_TOKENS = 8
TOKEN_REQUESTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "embedding": ("/v1/embeddings", {"input": "hello"}, "data"),
    "reranker": ("/v1/rerank", {"query": "hello", "documents": ["hello"]}, "results"),
    "decision": (
        "/v1/systemone",
        {"state": "hello", "questions": {"greeting": {"type": "noul", "instructions": "Is this a greeting?"}}},
        "answers",
    ),
    "model": ("/completion", {"prompt": "Hello", "n_predict": PROBE_TOKENS, "ignore_eos": True}, "content"),
}


@dataclass(frozen=True)
class Probe:
    """The result of probing a server.

    state: ready, loading, not_listening, wrong_identity (another process or model answers), unprotected (it has an API
    key file and yet answers without a key), hung (no answer in time), unhealthy (any other answer).
    """

    state: str
    detail: str | None = None
    # Response time of the deep check, and the speed of its tokens.
    seconds: float | None = None
    tokens_per_second: float | None = None


def probe(
    server: Server,
    pid: int | None,
    *,
    deep: bool = False,
    timeout: float = PROBE_TIMEOUT,
    deep_timeout: float = DEEP_TIMEOUT,
) -> Probe:
    """Probe one server; pid is the expected process."""
    name = str(server["name"])
    return probe_all([server], {name: pid}, deep=deep, timeout=timeout, deep_timeout=deep_timeout)[name]


def probe_all(
    servers: Sequence[Server],
    pids: Mapping[str, int | None],
    *,
    deep: bool = False,
    timeout: float = PROBE_TIMEOUT,
    deep_timeout: float = DEEP_TIMEOUT,
) -> dict[str, Probe]:
    """Probe servers in parallel: health first, then whether the planned process and model answer.

    A server whose process is not known, by name in pids, is not_listening: any process may have its port, so nothing is
    sent. It is about to start, or has ended.
    deep also requests a few tokens, with deep_timeout seconds to answer.
    """
    token_timeout = deep_timeout if deep else None
    if not servers:
        return {}
    # Before anything is sent: another process on the port gets no request and no API key. One lookup for all servers,
    # because listing sockets is slow.
    found = foreign_listeners(servers, pids)
    own = [server for server in servers if str(server["name"]) not in found]
    if not own:
        return found
    with ThreadPoolExecutor(max_workers=min(PROBES_AT_ONCE, len(own))) as pool:
        found.update(zip((str(server["name"]) for server in own), pool.map(lambda s: ask_health(s, timeout), own)))
        ready = [server for server in own if found[str(server["name"])].state == "ready"]
        found.update(
            zip((str(server["name"]) for server in ready), pool.map(lambda s: _works(s, token_timeout, timeout), ready))
        )
        return found


def ask_health(server: Server, timeout: float) -> Probe:
    try:
        code, _body = _ask(server, "GET", "/health", timeout, with_key=False)
    except ConnectionRefusedError:
        return Probe("not_listening")
    except socket.timeout:
        return Probe("hung", f"no answer within {timeout:g} s")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Probe("hung", f"{type(error).__name__}: {clean_text(str(error))}")
    return {200: Probe("ready"), 503: Probe("loading")}.get(code, Probe("unhealthy", f"/health answered {code}"))


def _works(server: Server, token_timeout: float | None, timeout: float) -> Probe:
    try:
        other = _other_model(server, timeout) or _unprotected(server, timeout)
        if other or token_timeout is None:
            return other or Probe("ready")
        return _ask_for_tokens(server, token_timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Probe(
            "hung", f"/health is 200, but a further request failed: {type(error).__name__} {clean_text(str(error))}"
        )


def foreign_listeners(servers: Sequence[Server], pids: Mapping[str, int | None]) -> dict[str, Probe]:
    """Return a probe for each server that gets no request: its port is held by another process, or it has none."""
    ours = {listening_place(server)[1]: pid for server in servers if (pid := pids.get(str(server["name"]))) is not None}
    held = listeners(ours, first=list(ours.values())) if ours else {}
    found = {}
    for server in servers:
        pid, listener = pids.get(str(server["name"])), held.get(listening_place(server)[1])
        if pid is None:
            found[str(server["name"])] = Probe("not_listening", NO_PROCESS)
            continue
        if listener is None:
            continue
        if listener.pid is None:
            # Only root sees which process it is, but anyone sees whose.
            uid = owner_of(pid)
            if uid is None:
                found[str(server["name"])] = Probe("not_listening", NO_PROCESS)
            elif any(other not in (uid, 0) for other in listener.uids):
                detail = f"port {listener.port} is held by a process of another user (uid {listener.uids[0]})"
                found[str(server["name"])] = Probe("wrong_identity", detail)
            continue
        # Children of a server may hold its socket.
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
    planned = flag_value(server["argv"], "--model")
    code, body = _ask(server, "GET", "/props", timeout)
    answered = body.get("model_path") if code == 200 and isinstance(body, dict) else None
    # Without a readable key, or with a build that does not report model_path, rely on the process check.
    if (
        not isinstance(answered, str)
        or not planned
        or answered == planned
        or os.path.realpath(answered.replace("\0", "")) == os.path.realpath(planned)
    ):
        return None
    return Probe(
        "wrong_identity", f"the server on port {server['port']} serves {visible_line(answered)}, planned is {planned}"
    )


def _unprotected(server: Server, timeout: float) -> Probe | None:
    """Return a probe where a server that should want an API key does not refuse a request without one."""
    if not server.get("api_key_file"):
        return None
    code, _body = _ask(server, "GET", "/props", timeout, with_key=False)
    if code in (401, 403):
        return None
    return Probe("unprotected", f"it has an API key file, but answered a request without a key with {code}")


def _ask_for_tokens(server: Server, timeout: float) -> Probe:
    began = time.monotonic()
    path, body, wanted = TOKEN_REQUESTS.get(str(server.get("kind")), TOKEN_REQUESTS["model"])
    try:
        code, answer = _ask(server, "POST", path, timeout, body)
    except socket.timeout:
        return Probe("hung", f"/health is 200, but {path} gave no answer within {timeout:g} s")
    if code == 200 and isinstance(answer, dict) and wanted in answer:
        took = round(time.monotonic() - began, 3)
        return Probe("ready", seconds=took, tokens_per_second=tokens_per_second(answer))
    return Probe("unhealthy", f"/health is 200, but {path} answered {code}: {clean_text(json.dumps(answer), 200)}")


def tokens_per_second(answer: Mapping[str, Any], requested: int = PROBE_TOKENS) -> float | None:
    """Return the speed of generation in an answer of /completion of the requested tokens; None without one."""
    timings = answer.get("timings")
    count, milliseconds = (timings.get(key) if isinstance(timings, dict) else None for key in _TIMINGS)
    if not isinstance(count, int) or not isinstance(milliseconds, (int, float)) or not 1 < count <= requested:
        return None
    # llama-server's clock starts with the first token. Older builds count that one in their own quotient.
    speed = (count - 1) * 1000 / milliseconds if milliseconds > 0 else math.inf
    return round(speed, 1) if speed < MAX_TOKENS_PER_SECOND else None


def _ask(
    server: Server, method: str, path: str, timeout: float, body: Any = None, *, with_key: bool = True
) -> tuple[int, Any]:
    """Send a request as ask_server; returns the status code and the JSON body, None if it is not JSON."""
    code, text = ask_server(server, method, path, timeout, body, with_key=with_key)
    try:
        return code, json.loads(text)
    except (ValueError, RecursionError):
        return code, None


def ask_server(
    server: Server, method: str, path: str, timeout: float, body: Any = None, *, with_key: bool = True
) -> tuple[int, bytes]:
    """Send a request with the server's API key, or without it; returns the status code and the body.

    Raises as request does.
    """
    key = first_key(server.get("api_key_file")) if with_key else None
    limit = MAX_HEALTH_BYTES if path == "/health" else MAX_ANSWER_BYTES
    host, port = listening_place(server)
    address = (asked_address(host), port)
    return request(address, method, path, seconds=timeout, limit=limit, body=body, key=key)


def wake(server: Server, timeout: float) -> str | None:
    """Ask a server that sleeps for its health, which starts it; return what is wrong, None if it is healthy."""
    address = (asked_address(str(server["host"])), int(server["port"]))
    try:
        code, _text = request(address, "GET", "/health", seconds=timeout, limit=MAX_HEALTH_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"a request at port {server['port']} did not start it: {type(error).__name__} {clean_text(str(error))}"
    return None if code == 200 else f"a request at port {server['port']} did not start it, and was answered {code}"


def asked_address(host: str) -> str:
    """Return the address at which to reach a server that listens on host."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
