# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The watchdog's program: one look at all servers of a state directory, on the host, started by a timer of systemd.

STATE_DIR MODE TIMEOUT RESTARTS_PER_HOUR
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from .._core.boot import boot_id
from .._core.errors import MagiError
from .._core.places import listening_place
from .._core.processes import connections
from .._core.run_lock import Run, acquire, holder, keep_renewed, release
from .._core.text import visible_line
from .._deployment.record import read_intended, read_record
from .._health.idle import NoAnswerError, said_requests, sleeps_when_idle
from .._health.observations import note_started_configs, note_stops
from .._health.pending import config_digests
from .._health.probe import PROBES_AT_ONCE, Server, foreign_listeners, probe
from .._health.watched import read_watched, write_watched
from .._services.base import STUCK, ServiceDriver
from .._services.table import driver_for
from .._services.transitions import Result, result_lines
from .decide import Policy, Seen, Verdict, decide, restarted, tried

# Cores that a server uses while it works on a batch. One that waits for a GPU that hangs uses none.
COMPUTING = 0.5


def main(words: Sequence[str]) -> int:
    """Look once, and print what is new. Returns the exit code."""
    state_dir, mode, timeout, per_hour = words
    try:
        lines, is_whole = look(state_dir, Policy(mode, int(per_hour)), float(timeout))
    except (MagiError, OSError) as error:
        sys.stdout.write(visible_line(f"the watchdog did not look: {error}") + "\n")
        return 1
    sys.stdout.writelines(visible_line(line) + "\n" for line in lines)
    return 0 if is_whole else 1


def look(state_dir: str, policy: Policy, timeout: float) -> tuple[list[str], bool]:
    """Look at every server that is to run, and restart those that hang, as far as the policy allows.

    Returns lines, and whether all was done: an error with one server leaves the others their turn. Nothing is done
    while a run has the host: it drains, starts and stops servers itself. Raises MagiError, OSError before anything is
    done.
    """
    if holder(state_dir) is not None:
        return [], True
    record = read_record(state_dir)
    driver = driver_for(record, state_dir)
    servers, pids = watched_servers(record["servers"], read_intended(state_dir), driver)
    known = read_watched(state_dir)
    verdicts = verdicts_of(servers, pids, timeout)
    if holder(state_dir) is not None:
        # It has begun meanwhile, and may have stopped what did not answer.
        return [], True
    # A server that is stopped for a while keeps the restarts that it had.
    seen = {name: known[name] for name in known if name in {str(one["name"]) for one in record["servers"]}}

    def note(name: str, now: Seen) -> None:
        seen[name] = now.as_dict()
        write_watched(state_dir, seen)

    lines, is_whole = [], True
    for name, verdict in verdicts.items():
        before = Seen.load(known[name]) if name in known else None
        decision = decide(before, pids[name], verdict, time.time(), policy)
        lines += [f"{name}: {decision.text}"] if decision.text else []
        seen[name] = decision.seen.as_dict()
        if decision.restarts:
            try:
                after, done = _restart(state_dir, name, decision.seen, driver, note)
            except (MagiError, OSError) as error:
                # What was tried has been noted.
                lines.append(f"{name}: restarting it failed: {error}")
                is_whole = False
            else:
                seen[name] = after.as_dict()
                lines += done
    try:
        write_watched(state_dir, seen)
    except OSError as error:
        lines.append(f"what was seen of the servers could not be noted: {error}")
        is_whole = False
    return lines, is_whole


def watched_servers(
    record: Sequence[Server], intended: Mapping[str, str], driver: ServiceDriver
) -> tuple[list[Server], dict[str, int]]:
    """Return the servers to look at, and their processes by name: those that run and are meant to, all the time."""
    meant = [
        server
        for server in record
        if intended.get(str(server["name"])) == "started"
        and not {"on_demand", "stands_in_for"} & server.keys()
        and not sleeps_when_idle(server)
    ]
    statuses = driver.status([str(server["name"]) for server in meant])
    pids = {name: one.pid for name, one in statuses.items() if one.state == "running" and one.pid is not None}
    return [server for server in meant if server["name"] in pids], pids


def verdicts_of(servers: Sequence[Server], pids: Mapping[str, int], timeout: float) -> dict[str, Verdict]:
    """Look at servers side by side; timeout is for each of their answers."""
    if not servers:
        return {}
    # Another process on the port gets no request and no API key.
    foreign = foreign_listeners(servers, pids)
    found = {name: Verdict("skipped", one.detail) for name, one in foreign.items()}
    own = [server for server in servers if str(server["name"]) not in found]
    with ThreadPoolExecutor(max_workers=PROBES_AT_ONCE) as pool:
        looks = pool.map(lambda server: _verdict(server, pids[str(server["name"])], timeout), own)
        found.update(zip((str(server["name"]) for server in own), looks))
    return found


def _verdict(server: Server, pid: int, timeout: float) -> Verdict:
    if _is_busy(server, pid, timeout):
        return Verdict("busy")
    answer = probe(server, pid, deep=True, timeout=timeout, deep_timeout=timeout)
    if answer.state == "ready":
        return Verdict("answers")
    if answer.state != "hung":
        return Verdict("skipped", f"{answer.state}: {answer.detail}" if answer.detail else answer.state)
    # Requests that came in meanwhile were served first.
    return Verdict("busy") if _is_busy(server, pid, timeout) else Verdict("hung", answer.detail)


def _is_busy(server: Server, pid: int, timeout: float) -> bool:
    """Whether a server has requests.

    One that does not answer in time hangs, or works on a batch, which takes minutes on a CPU: it is busy if a client
    waits and its process computes.
    """
    before, began = _cpu_seconds(pid), time.monotonic()
    try:
        said = said_requests(server, timeout)
    except NoAnswerError:
        # A refusal comes at once, when nothing can be said of what it computes.
        waited = max(timeout, time.monotonic() - began)
        return _has_clients(server) and _cpu_seconds(pid) - before >= COMPUTING * waited
    return said > 0 if isinstance(said, int) else _has_clients(server)


def _has_clients(server: Server) -> bool:
    port = listening_place(server)[1]
    return connections([port])[port] > 0


def _cpu_seconds(pid: int) -> float:
    """CPU time that a process and its children have used, in seconds; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            # The name, in parentheses, may contain any character. utime and stime.
            ticks = sum(map(int, stream.read().rpartition(")")[2].split()[11:13]))
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
            children = [int(word) for word in stream.read().split()]
    except (OSError, ValueError):
        return 0.0
    # A script that wraps llama-server has it as a child.
    return ticks / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_seconds, children))


def _restart(
    state_dir: str, name: str, seen: Seen, driver: ServiceDriver, note: Callable[[str, Seen], None]
) -> tuple[Seen, list[str]]:
    """Restart a server under the run lock; returns what is known of it then, and lines. Raises MagiError, OSError.

    note is called before anything is done: a restart that fails, or is killed, counts as well, or nothing would limit
    them.
    """
    run = _this_run()
    other = acquire(state_dir, run)
    if other is not None:
        return seen, [f"{name}: not restarted, as another run is changing this host: {other.run}"]
    try:
        with keep_renewed(state_dir, run.id):
            result = restart(state_dir, name, seen.pid, driver, lambda: note(name, tried(seen, time.time())))
    finally:
        release(state_dir, run.id)
    if result is None:
        return seen, [f"{name}: not restarted, as it has changed meanwhile"]
    return restarted(seen, result.pid_after or 0, time.time()), result_lines([result])


def restart(state_dir: str, name: str, pid: int, driver: ServiceDriver, begin: Callable[[], None]) -> Result | None:
    """Stop the server's process and start it again, under the run lock; None where it is another one by now.

    begin is called before it is stopped.
    """
    record = read_record(state_dir)
    server = next((one for one in record["servers"] if one["name"] == name), None)
    is_meant = read_intended(state_dir).get(name) == "started"
    if server is None or not is_meant or driver.status([name])[name].pid != pid:
        return None
    begin()
    # SIGTERM, SIGTERM again, SIGKILL.
    stopped = driver.stop([name], float(server["stop_timeout"]))[name]
    errors = driver.start([name])
    after = driver.status([name])[name].pid
    stuck = stopped.signal in STUCK
    result = Result(name, "restart", pid, after, stopped.signal, stopped.seconds, errors.get(name), stuck)
    digests = config_digests(state_dir, record["service_manager"], {name: after})
    note_started_configs(state_dir, {name: after}, digests)
    note_stops(state_dir, {name: result})
    return result


def _this_run() -> Run:
    host, pid = socket.gethostname(), os.getpid()
    # Never the id of a run of Ansible, which names its PID namespace too.
    return Run(f"watchdog.{boot_id()}/{pid}/{time.time_ns()}", host, "root", pid, "the watchdog")
