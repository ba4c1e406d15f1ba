# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On this machine with supervisor: site.yml against a role that loops, with 1 and with 20 servers."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from bench import mitogen
from bench.floor import above_floor, floor
from bench.measure import (
    BIN,
    CACHE,
    FIRST_PORT,
    ROOT,
    BenchError,
    Row,
    Run,
    alternate,
    faster,
    figure,
    local_inventory,
    playbook,
    runtime_variables,
    say,
    skipped,
    spread,
    unchanged,
    within,
)
from support import reaper

PART = "runs"
MODELS = ROOT / ".cache" / "models"
MODEL = "tiny-llama-Q4_K_M.gguf"
MODEL_ID = "tiny-llama-q4_k_m"
MANY = 20
# Each side and number of servers has its own ports, so that all can run at once.
OUR_PORTS = {MANY: FIRST_PORT, 1: FIRST_PORT + 2 * MANY}
LOOP_PORTS = {MANY: FIRST_PORT + MANY, 1: FIRST_PORT + 2 * MANY + 1}
# As in the profile development. `threads` keeps its default, so servers that start together compete, as in production.
PARAMETERS = {"ctx_size": 4096, "parallel": 1, "cache_ram": 0}
FLAGS = ["--ctx-size", "4096", "--parallel", "1", "--cache-ram", "0"]
START, WAIT = "Start, restart and stop the changed servers", "Wait until every server is healthy"


def profile(count: int) -> dict[str, Any]:
    return {
        "description": f"{count} servers of one model",
        "enabled_models": [{"model": MODEL_ID, "instances": count}],
        "parameters": PARAMETERS,
    }


def loop_variables(count: int) -> dict[str, Any]:
    return {
        "loop_role_servers": [{"name": f"loop-{n:02}", "port": LOOP_PORTS[count] + n} for n in range(count)],
        "loop_role_flags": FLAGS,
    }


# --- ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """The servers of the collection on this machine, in the bench's own state directory."""

    def __init__(
        self,
        count: int,
        folder: Path,
        *,
        port: int = 0,
        models: Path = MODELS,
        registry: Path | None = None,
        enabled: dict[str, Any] | None = None,
    ) -> None:
        first = port or OUR_PORTS[count]
        self.state = folder / "state"
        reaper.watch(folder)
        self.inventory = local_inventory(
            folder,
            {
                **runtime_variables(),
                "registry_scan_paths": [str(models)],
                "registry_path": str(registry or self.state / "registry.json"),
                "servers_state_dir": str(self.state),
                "servers_service_manager": "supervisor",
                "servers_supervisord_path": str(BIN / "supervisord"),
                "servers_user": _user(),
                "servers_allow_root": True,
                "servers_keep_runtime": True,
                "servers_port_range_start": first,
                "servers_port_range_end": first + count - 1,
            },
            {"bench": enabled or profile(count)},
        )

    def run(self, *arguments: str, **environment: str) -> Run:
        return playbook("playbooks/site.yml", self.inventory, "-e", "profile=bench", *arguments, **environment)

    def record(self) -> list[dict[str, Any]]:
        return list(json.loads((self.state / "deployment.json").read_text())["deployed"]["servers"])

    def remove(self) -> None:
        if self.state.exists():
            playbook("playbooks/teardown.yml", self.inventory)


# --- the loop role ---------------------------------------------------------------------------------------------------


class Loop:
    """The same servers with the loop role, under a running supervisord, as on hosts where such roles are used."""

    def __init__(self, count: int, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "supervisord.conf"
        variables = loop_variables(count)
        for server in variables["loop_role_servers"]:
            server["model"] = str(MODELS / MODEL)
        self.inventory = local_inventory(
            folder,
            {
                **variables,
                "loop_role_service_manager": "supervisor",
                "loop_role_binary": str(ROOT / ".cache" / "bin" / "llama-server"),
                "loop_role_user": _user(),
                "loop_role_config_dir": str(folder / "conf.d"),
                "loop_role_supervisorctl": [str(BIN / "supervisorctl"), "-c", str(self.config)],
            },
            {},
        )

    def start_manager(self) -> None:
        shutil.rmtree(self.folder / "conf.d", ignore_errors=True)
        (self.folder / "conf.d").mkdir()
        self.config.write_text(
            f"[unix_http_server]\nfile={self.folder}/supervisor.sock\n"
            f"[supervisord]\npidfile={self.folder}/supervisord.pid\nlogfile={self.folder}/supervisord.log\n"
            f"childlogdir={self.folder}\nuser={_user()}\n"
            "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory="
            "supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{self.folder}/supervisor.sock\n"
            "[include]\nfiles=conf.d/*.conf\n"
        )
        subprocess.run([BIN / "supervisord", "-c", self.config], check=True)

    def run(self) -> Run:
        return playbook("tests/bench/loop.yml", self.inventory)

    def remove(self) -> None:
        """Stop supervisord and with it all servers."""
        pid_file = self.folder / "supervisord.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text())
        if str(self.config).encode() in _command(pid):
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + 60
            while _command(pid) and time.monotonic() < deadline:
                time.sleep(0.05)
        pid_file.unlink(missing_ok=True)


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# --- by hand ---------------------------------------------------------------------------------------------------------


def by_hand(servers: list[dict[str, Any]]) -> float:
    """Seconds from starting the same servers at once until the last one is healthy."""
    began = time.monotonic()
    processes = [
        subprocess.Popen(server["argv"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for server in servers
    ]
    try:
        waiting = {server["port"] for server in servers}
        while waiting:
            waiting = {port for port in waiting if not healthy(port)}
            if waiting and time.monotonic() - began > 120:
                raise BenchError(f"Servers started by hand are not healthy on the ports {sorted(waiting)}.")
            time.sleep(0.02)
        return time.monotonic() - began
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# --- the comparison --------------------------------------------------------------------------------------------------


class Removable(Protocol):
    def remove(self) -> None: ...


@contextmanager
def removed_afterwards(*sides: Removable) -> Iterator[None]:
    """Remove what an interrupted bench has left before, and what this one leaves, also when it fails.

    After an interrupt the reaper stops all servers at once; here that would take several runs of a playbook.
    """
    for side in sides:
        side.remove()
    with ExitStack() as removal:
        for side in sides:
            removal.callback(side.remove)
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            removal.pop_all()
            raise


def timed(runs: list[Run], run: Run) -> float:
    runs.append(run)
    return run.seconds


class Compared:
    """Runs of both sides with the same number of servers, and the times of the same servers started by hand."""

    def __init__(self, count: int) -> None:
        self.sides = (Ours(count, CACHE / f"ours-{count}"), Loop(count, CACHE / f"loop-{count}"))
        self.ours_first: list[Run] = []
        self.loop_first: list[Run] = []
        self.ours: list[Run] = []
        self.loop: list[Run] = []
        self.hand: list[float] = []
        self.floor_first: list[Run] = []
        self.floor: list[Run] = []
        self.mitogen: list[Run] = []
        self._servers: list[dict[str, Any]] = []

    def first_ours(self) -> float:
        ours, _ = self.sides
        with removed_afterwards(ours):
            seconds = timed(self.ours_first, ours.run())
            self._servers = ours.record()
            return seconds

    def first_loop(self) -> float:
        _, loop = self.sides
        with removed_afterwards(loop):
            loop.start_manager()
            return timed(self.loop_first, loop.run())

    def by_hand(self) -> float:
        self.hand.append(by_hand(self._servers))
        return self.hand[-1]

    def first_floor(self) -> float:
        return timed(self.floor_first, floor(self.ours_first[-1].module_calls, self.sides[0].inventory))

    def again_floor(self) -> float:
        return timed(self.floor, floor(self.ours[-1].module_calls, self.sides[0].inventory))

    def again_mitogen(self, environment: dict[str, str]) -> float:
        return timed(self.mitogen, unchanged(self.sides[0].run(**environment)))

    def start(self) -> None:
        ours, loop = self.sides
        loop.start_manager()
        ours.run()
        loop.run()

    def again_ours(self) -> float:
        return timed(self.ours, unchanged(self.sides[0].run()))

    def again_loop(self) -> float:
        return timed(self.loop, unchanged(self.sides[1].run()))


def compare(first_rounds: int, rounds: int) -> tuple[Compared, Compared]:
    """First runs and runs that change nothing, with one server and with many, alternating."""
    one, many = Compared(1), Compared(MANY)
    say("first runs")
    alternate(first_rounds, ours_1=one.first_ours, loop_1=one.first_loop)
    alternate(first_rounds, ours=many.first_ours, hand=many.by_hand, floor=many.first_floor, loop=many.first_loop)
    strategy = mitogen.environment()
    with_mitogen = {"mitogen": partial(many.again_mitogen, strategy)} if strategy else {}
    say("unchanged runs")
    with removed_afterwards(*one.sides, *many.sides):
        one.start()
        many.start()
        alternate(
            rounds,
            ours_1=one.again_ours,
            ours=many.again_ours,
            floor=many.again_floor,
            **with_mitogen,
            loop_1=one.again_loop,
            loop=many.again_loop,
        )
    return one, many


def seconds(runs: list[Run]) -> float:
    return median(run.seconds for run in runs)


def all_of(runs: list[Run]) -> str:
    return f"{spread(run.seconds for run in runs)} (processor {median(run.processor for run in runs):.1f} s)"


def profiled(run: Run, count: int = 6) -> str:
    """The slowest tasks of a run."""
    tasks = sorted(run.tasks, key=lambda task: task[1] - task[2])[:count]
    start = run.seconds - (run.tasks[-1][2] - run.tasks[0][1])
    named = ", ".join(f"{name.rpartition(' : ')[2]} {end - begin:.2f}" for name, begin, end in tasks)
    return f"ansible-playbook itself {start:.2f} s; {named}"


def need_binaries() -> None:
    for needed in (ROOT / ".cache" / "bin" / "llama-server", MODELS / MODEL):
        if not needed.exists():
            raise BenchError(f"{needed} is missing: make .cache/models/.ready provides it.")


def _under_mitogen(many: Compared) -> Row:
    what = f"nothing to change, {MANY} servers, under Mitogen"
    if not many.mitogen:
        return skipped(PART, what, "it cannot be installed")
    return faster(PART, what, seconds(many.mitogen), seconds(many.ours), "without it", note=all_of(many.mitogen))


def measure() -> list[Row]:
    need_binaries()
    one, many = compare(3, 5)
    ours, loop, alone, loop_alone = (seconds(runs) for runs in (many.ours, many.loop, one.ours, one.loop))
    first, loop_first = seconds(many.ours_first), seconds(many.loop_first)
    alone_first, loop_alone_first = seconds(one.ours_first), seconds(one.loop_first)
    started = [run.seconds_of(START, WAIT) for run in many.ours_first]
    both = f"ours {all_of(many.ours)}; loop role {all_of(many.loop)}"
    both_first = f"ours {all_of(many.ours_first)}; loop role {all_of(many.loop_first)}"
    hand = f"ours {spread(started)}; by hand {spread(many.hand)}"
    nearer = f"nothing to change, {MANY} servers, above Ansible itself"
    nearer_first = f"first run, {MANY} servers, above Ansible itself"
    from_start = f"start handler to the last healthy, {MANY} servers"
    return [
        within(PART, f"nothing to change, {MANY} servers", ours, alone, "1 server", 1.2, note=profiled(many.ours[-1])),
        faster(PART, "the same", ours, loop, "loop role", 5, note=both),
        faster(PART, "nothing to change, 1 server", alone, loop_alone, "loop role"),
        faster(PART, f"first run, {MANY} servers", first, loop_first, "loop role", note=both_first),
        faster(PART, "first run, 1 server", alone_first, loop_alone_first, "loop role"),
        within(
            PART,
            from_start,
            median(started),
            median(many.hand),
            "by hand, in parallel",
            1.2,
            note=f"{hand}; {profiled(many.ours_first[-1])}",
        ),
        above_floor(PART, nearer, many.ours, many.floor, 1.5),
        above_floor(PART, nearer_first, many.ours_first, many.floor_first, 1.5, added=median(many.hand)),
        _under_mitogen(many),
        figure(PART, f"peak memory of ansible-playbook, {MANY} servers", many.ours[-1].peak_bytes / 1e6, "MB"),
    ]
