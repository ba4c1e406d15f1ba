# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that their first request starts, on a real host with systemd: woken, put to sleep, stopped for each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.bed import ALL, MODELS, PROJECT, Outcome
from support.nodes import one_node
from support.runs import CHECKOUT

BED = "ondemand-test"
RESIDENT, FIRST, SECOND = "tiny-llama-q4_k_m", "tiny-llama-q3_k_m", "tiny-llama-q2_k"
PARAMETERS = {"ctx_size": 1024, "parallel": 2, "threads": 1}
# Each needs 32 MiB: two fit.
LAZY = {
    "enabled_models": [
        RESIDENT,
        {"model": FIRST, "start": {"on_demand": True}},
        {"model": SECOND, "start": {"on_demand": True, "idle_stop": 4}},
    ],
    "parameters": PARAMETERS,
    "memory_budget": "70MiB",
}
# Run on the host: prints the status code, and the model that answered. The request takes so many seconds to send.
ASK = """
import http.client, json, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=120)
body = json.dumps({"prompt": "Hello", "n_predict": 2}).encode()
connection.putrequest("POST", "/v1/completions")
connection.putheader("Content-Length", str(len(body)))
connection.endheaders(body[:1])
time.sleep(float(sys.argv[2]))
connection.send(body[1:])
answer = connection.getresponse()
print(answer.status, json.loads(answer.read()).get("model"))
"""


@dataclass(frozen=True)
class Host:
    """A node, and what runs on it."""

    inventory: Path
    container: str

    def run(self, playbook: str, *arguments: str) -> Outcome:
        program = Path(sys.executable).parent / "ansible-playbook"
        command = [program, "-i", self.inventory, PROJECT / f"playbooks/{playbook}.yml", *arguments]
        environment = {**os.environ, **CHECKOUT, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=PROJECT)
        return Outcome(done.returncode, done.stdout + done.stderr)

    def shell(self, *command: str) -> str:
        done = subprocess.run(["podman", "exec", self.container, *command], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def ask(self, port: int, seconds: float = 0) -> list[str]:
        return self.shell("python3", "-c", ASK, str(port), str(seconds)).split()

    def states(self, *units: str) -> list[str]:
        return self.shell("systemctl", "is-active", *units).split()

    def awake(self) -> list[str]:
        units = {name: f"magi-llama-{name}.service" for name in (RESIDENT, FIRST, SECOND)}
        return [name for name, state in zip(units, self.states(*units.values()), strict=True) if state == "active"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("ondemand")
    inventory = folder / "hosts.yml"
    with one_node(BED, inventory, "--models", str(MODELS)):
        (folder / "profiles").mkdir()
        resident = {"enabled_models": [RESIDENT, FIRST], "parameters": PARAMETERS}
        for name, content in (("lazy", LAZY), ("resident", resident)):
            (folder / "profiles" / f"{name}.yml").write_text(json.dumps(content))
        listing = ["podman", "ps", f"--filter=label=magi.llama.bed={BED}", "--format", "{{.Names}}"]
        container = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.strip()
        yield Host(inventory, container)


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_requests_start_servers_which_make_room_and_sleep_again(host: Host) -> None:
    refused = host.run("plan", "-e", "profile=lazy", "-e", "servers_service_manager=supervisor")
    assert refused.code != 0
    refused.expect("lazy.yml), enabled_models[1].start.on_demand: supervisor does not start servers on demand")
    first = host.run("site", "-e", "profile=lazy")
    assert first.code == 0, first.output
    first.expect("3 of 3 ready", "sleeping")
    assert host.awake() == [RESIDENT]
    ports = {name: 8080 + number for number, name in enumerate((RESIDENT, FIRST, SECOND))}

    # Many at once start it once.
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(host.ask, [ports[FIRST]] * 8)) == [["200", FIRST]] * 8
    assert host.awake() == [RESIDENT, FIRST]
    # The next one needs its memory.
    assert host.ask(ports[SECOND]) == ["200", SECOND]
    assert host.awake() == [RESIDENT, SECOND]
    # It goes to sleep by itself, and its run changes nothing.
    assert wait_until(lambda: host.awake() == [RESIDENT])
    again = host.run("site", "-e", "profile=lazy")
    assert (again.code, again.changed) == (0, 0), again.output

    # A request that is longer than the idle time is not cut, and no other server takes its memory.
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(host.ask, ports[SECOND], 12)
        assert wait_until(lambda: SECOND in host.awake())
        assert host.ask(ports[FIRST]) == ["503", "None"]
        assert not long.done()
        assert long.result() == ["200", SECOND]

    # A crash is repaired by the next request.
    assert wait_until(lambda: host.ask(ports[FIRST]) == ["200", FIRST])
    host.shell("systemctl", "kill", "-s", "KILL", "--kill-whom=main", f"magi-llama-{FIRST}.service")
    assert wait_until(lambda: host.ask(ports[FIRST]) == ["200", FIRST])
    verified = host.run("verify")
    assert verified.code == 0, verified.output
    verified.expect(*(f"{name} port {port}: ok" for name, port in ports.items()))


def test_stop_and_change_leave_no_socket(host: Host) -> None:
    assert host.run("site", "-e", "profile=lazy").code == 0
    sockets = [f"magi-llama.wake.{name}.socket" for name in (FIRST, SECOND)]
    assert host.run("stop", *ALL).code == 0
    assert host.states(*sockets) == ["inactive", "inactive"]
    assert host.awake() == []
    assert host.run("start", *ALL).code == 0
    assert host.states(*sockets) == ["active", "active"]
    changed = host.run("site", "-e", "profile=resident")
    assert changed.code == 0, changed.output
    assert host.awake() == [RESIDENT, FIRST]
    assert host.ask(8081) == ["200", FIRST]
    assert host.states(*sockets) == ["inactive", "inactive"]
    back = host.run("rollback")
    assert back.code == 0, back.output
    assert host.states(*sockets) == ["active", "active"]
    assert host.ask(8082) == ["200", SECOND]
    gone = host.run("teardown")
    assert gone.code == 0, gone.output
    assert host.shell("sh", "-c", "ls -d /etc/systemd/system/*magi* /var/lib/magi-llama 2>/dev/null") == ""
    assert host.states(*sockets) == ["inactive", "inactive"]
