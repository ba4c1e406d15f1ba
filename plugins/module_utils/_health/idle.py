# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Wait until servers have answered the requests that they have."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from .._core.argv import flag_value
from .._core.errors import MagiError
from .._core.processes import Process, connections, processes
from .._core.values import MAX_PORT
from .probe import PROBE_TIMEOUT, PROBES_AT_ONCE, Server, ask_server, foreign_listeners

# A request may come in between two looks at a server that has none.
QUIET_LOOKS = 2
LOOK_SECONDS = 0.3
LOADING = 503
SLEEP_FLAG = "--sleep-idle-seconds"
_GAUGES = ("processing", "deferred")
_METRIC = re.compile(rf"^llamacpp:requests_({'|'.join(_GAUGES)}) ([0-9]{{1,9}})$".encode(), re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """How many requests a server has. detail says what the number is, where it is not of the server itself."""

    requests: int
    detail: str | None = None
    # Nothing can arrive at a server that does not run.
    is_running: bool = True


@dataclass(frozen=True)
class Idleness:
    """The result of waiting for one server: the seconds waited, and the requests that are not over at the time-out."""

    name: str
    idle: bool
    is_settled: bool
    seconds: float
    requests: int
    detail: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def wait_until_idle(
    names: Sequence[str],
    look: Callable[[Sequence[str]], Mapping[str, Look]],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    timeout: float,
    slice_seconds: float | None = None,
    elapsed: float = 0.0,
) -> list[Idleness]:
    """Wait until each server is settled (idle, or its time is over) or the slice ends; returns a result for each.

    timeout is for all servers at once; elapsed is the seconds spent in earlier slices.
    """
    began = clock()
    quiet = dict.fromkeys(names, 0)
    found: dict[str, Idleness] = {}
    pending = list(quiet)
    while pending:
        looks = look(pending)
        passed = clock() - began
        for name in pending:
            now = looks[name]
            quiet[name] = 0 if now.requests else quiet[name] + 1
            idle = quiet[name] >= QUIET_LOOKS or not (now.requests or now.is_running)
            # One that was quiet once is looked at again, also after the time-out.
            is_late = bool(now.requests) and elapsed + passed >= timeout
            seconds = round(elapsed + passed, 1)
            found[name] = Idleness(name, idle, idle or is_late, seconds, now.requests, now.detail)
        pending = [name for name in pending if not found[name].is_settled]
        if slice_seconds is not None and passed >= slice_seconds:
            break
        if pending:
            sleep(LOOK_SECONDS)
    return [found[name] for name in quiet]


def look_at(state_dir: str, record: Sequence[Server], names: Iterable[str]) -> dict[str, Look]:
    """How many requests each of these servers of a state directory has.

    Their processes say where they listen, as the record may be of their next start already. The key is that of the
    record: which file is read and sent is not for a process to say.
    """
    running = processes(state_dir)
    keys = {str(server["name"]): server.get("api_key_file") for server in record}
    servers = [_server(running[name], keys.get(name)) for name in names if name in running]
    pids = {str(server["name"]): running[str(server["name"])].pid for server in servers}
    return {**{name: Look(0, "it is not running", False) for name in names}, **requests_at(servers, pids)}


def _server(process: Process, key_file: Any) -> dict[str, Any]:
    port = flag_value(process.argv, "--port") or ""
    return {
        "name": process.name,
        # Newer builds listen on several addresses.
        "host": (flag_value(process.argv, "--host") or "127.0.0.1").partition(",")[0],
        "port": int(port) if port.isdecimal() and len(port) <= len(str(MAX_PORT)) else 0,
        "api_key_file": key_file,
    }


def requests_at(servers: Sequence[Server], pids: Mapping[str, int | None]) -> dict[str, Look]:
    """How many requests running servers have, with name, host, port and api_key_file; pids are their processes."""
    if not servers:
        return {}
    # Before anything is sent: another process on the port gets no request and no API key.
    found: dict[str, int | str] = {
        name: probe.detail or probe.state for name, probe in foreign_listeners(servers, pids).items()
    }
    own = [server for server in servers if str(server["name"]) not in found]
    with ThreadPoolExecutor(max_workers=PROBES_AT_ONCE) as pool:
        found.update(zip((str(server["name"]) for server in own), pool.map(_requests, own)))
    looks = {}
    open_ports = connections(int(server["port"]) for server in servers)
    for server in servers:
        answer = found[str(server["name"])]
        if isinstance(answer, int):
            looks[str(server["name"])] = Look(answer)
        else:
            # It may be hung with requests in it, or it does not say. No connection has a request in it.
            detail = f"its connections are counted, as {answer}"
            looks[str(server["name"])] = Look(open_ports[int(server["port"])], detail)
    return looks


class NoAnswerError(MagiError):
    """Raised for a server that does not answer in time."""


def _requests(server: Server) -> int | str:
    """How many requests a server says that it has; otherwise why it does not say so."""
    try:
        return said_requests(server, PROBE_TIMEOUT)
    except NoAnswerError as error:
        return str(error)


def said_requests(server: Server, timeout: float) -> int | str:
    """How many requests a server says that it has; otherwise why its answers do not say so. Raises NoAnswerError."""
    whys = []
    for path, count in (("/slots", _busy_slots), ("/metrics", _in_metrics)):
        try:
            code, text = ask_server(server, "GET", path, timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswerError(f"{path} did not answer ({type(error).__name__})") from error
        if code == LOADING:
            return 0
        number = count(text) if code == 200 else None
        if number is not None:
            return number
        whys.append(f"{path} answered {code}" if code != 200 else f"{path} does not say it")
    return " and ".join(whys)


def sleeps_when_idle(server: Server) -> bool:
    """Whether it frees its memory after a time without requests; all but those for health and properties wake it."""
    seconds = flag_value(server["argv"], SLEEP_FLAG)
    return seconds is not None and not seconds.startswith("-")


def _busy_slots(text: bytes) -> int | None:
    try:
        slots = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(slots, list) or not all(isinstance(slot, dict) and "is_processing" in slot for slot in slots):
        return None
    return sum(bool(slot["is_processing"]) for slot in slots)


def _in_metrics(text: bytes) -> int | None:
    numbers = dict(_METRIC.findall(text))
    return sum(map(int, numbers.values())) if len(numbers) == len(_GAUGES) else None


def summary(servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the overall result: complete and msg."""
    idle = sum(bool(server["idle"]) for server in servers)
    lines = [f"{idle} of {len(servers)} servers are idle"]
    lines += [f"{server['name']}: {idleness_text(server)}" for server in servers if not server["idle"]]
    return {"complete": all(server["is_settled"] for server in servers), "msg": "\n".join(lines)}


def idleness_text(server: Mapping[str, Any]) -> str:
    """What became of a server that was waited for."""
    detail = f" ({server['detail']})" if server["detail"] else ""
    if server["idle"]:
        return f"idle after {server['seconds']:g} s{detail}"
    count = server["requests"]
    requests = f"{count} request{'s are' if count != 1 else ' is'} not over"
    return f"{requests} after {server['seconds']:g} s{detail}"
