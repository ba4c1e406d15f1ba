# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""compose.yml in a real Docker Engine: what make docker-test asks, profiles, restarts and the end. In this order."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker_test
import pytest
from compose_stack import ROOT, Stack, StackError
from support import checkout, reaper
from support.bed import Bed

SECONDS = 300.0


@pytest.mark.parametrize("step", docker_test.STEPS[:-1], ids=lambda step: step.__name__)
def test_step_of_docker_test(stack: Stack, step: Callable[[Stack], None]) -> None:
    try:
        step(stack)
    except docker_test.Skipped as reason:
        pytest.skip(str(reason))


def tiers(stack: Stack) -> set[str]:
    return {one["tier"] for one in stack.servers() if one["is_ready"]}


def test_the_users_own_profile_is_deployed(stack: Stack) -> None:
    assert (tiers(stack), stack.console("/api/models/profiles").json()["active_profile"]) == ({"Q2", "Q4"}, "mine")


def test_the_status_is_that_of_the_same_profile_on_a_host(stack: Stack, tmp_path: Path) -> None:
    document = "/data/status-of-the-tests.json"
    arguments = ("-e", "output=json", "-e", f"output_file={document}")
    stack.call("exec", "-T", "magi", "ansible-playbook", "-i", "/config/hosts.yml", "magi.llama.status", *arguments)
    [here] = json.loads(stack.run_in("magi", "cat", document))["hosts"].values()
    with reaper.temporary_folder("magi-same-") as folder:
        bed = Bed(folder)
        profile = Path(stack.setting("PROFILES", "")) / "mine.yml"
        (bed.inventory / "profiles/mine.yml").write_text(profile.read_text())
        bed.run("site", "-e", "profile=mine")
        bed.run("status", "-e", "output=json", "-e", f"output_file={tmp_path}/status.json")
        [there] = json.loads((tmp_path / "status.json").read_text())["hosts"].values()
        bed.remove()
    assert comparable(here) == comparable(there)


def comparable(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The servers of a status document, without what two processes never share and what this test's hosts do not."""
    of_process = {"pid", "uptime_seconds", "rss_bytes", "restarts", "tokens_per_second", "host", "address", "url"}
    # It was measured at the deployment, of the process that a test before may have killed.
    of_process |= {"memory"}
    of_host = {"port", "bind_address", "needs_api_key"}
    return [
        {key: value for key, value in server.items() if key not in of_process | of_host} for server in status["servers"]
    ]


def test_the_containers_have_no_rights(stack: Stack) -> None:
    for service in ("magi", "gateway", "redis"):
        status = Path(f"/proc/{stack.container(service)['State']['Pid']}/status").read_text()
        assert "\nUid:\t10001\t" in status and "\nCapEff:\t0000000000000000\n" in status
        assert "\nNoNewPrivs:\t1\n" in status


def test_profile_is_changed_by_the_api(stack: Stack) -> None:
    answer = stack.console("/api/models/profile/activate?wait=240", {"profile_name": "fast-only"}, timeout=300)
    assert answer.status == 200, answer.body
    assert tiers(stack) == {"Q2"}


def test_profile_is_changed_by_the_environment(stack: Stack) -> None:
    stack.variables = {"MAGI_PROFILE": "production"}
    stack.call("up", "-d", "--no-build")
    stack.wait_until_healthy(SECONDS)
    assert tiers(stack) == {"Q3", "Q4"}
    stack.variables = {}


def test_profile_is_changed_by_a_compose_file(stack: Stack, tmp_path: Path) -> None:
    override = tmp_path / "override.yml"
    override.write_text(json.dumps({"services": {"magi": {"environment": {"MAGI_PROFILE": "fast-only"}}}}))
    # From here on with the sources of the checkout, so that it is one start less.
    stack.files = (ROOT / "compose.yml", ROOT / "compose.dev.yml", override)
    stack.call("up", "-d", "--no-build")
    stack.wait_until_healthy(SECONDS)
    assert tiers(stack) == {"Q2"}


def test_a_container_that_is_killed_comes_back_by_itself(stack: Stack) -> None:
    for service in ("magi", "gateway"):
        started = stack.container(service)["State"]["StartedAt"]
        os.kill(stack.container(service)["State"]["Pid"], signal.SIGKILL)
        stack.wait(
            lambda service=service, started=started: stack.container(service)["State"]["StartedAt"] != started, 60
        )
    stack.wait_until_healthy(SECONDS)
    docker_test.completion(stack)


def test_a_change_of_the_sources_starts_the_api_again(stack: Stack) -> None:
    os.utime(ROOT / "console/src/magi_llama_console/known.py")
    stack.wait(lambda: "sources have changed" in stack.call("logs", "--no-color", "--tail", "50", "magi"), 60)
    stack.wait(lambda: stack.ask(stack.console_port, "/health").status == 200, 60)


def test_another_port_of_the_gateway_is_taken_over(stack: Stack) -> None:
    # The gateway's container comes up with the HAProxy of the last run, which has the other port.
    stack.variables = {"MAGI_GATEWAY_PORT": str(checkout.ports("containers").start + 10)}
    stack.call("up", "-d", "--no-build")
    stack.wait_until_healthy(SECONDS)
    docker_test.completion(stack)


def test_ssh_is_not_in_the_network_of_the_published_ports(stack: Stack) -> None:
    networks = stack.container("gateway")["NetworkSettings"]["Networks"]
    ask = "import socket, sys; socket.create_connection((sys.argv[1], 2222), 3)"
    found = {}
    for name, network in networks.items():
        with contextlib.suppress(StackError):
            stack.run_in("magi", "python3", "-c", ask, network["IPAddress"])
            found[name] = True
    assert len(networks) == 2 and [name.rpartition("_")[2] for name in found] == ["back"]


def test_stop_answers_a_stream_that_is_open(stack: Stack) -> None:
    key = stack.run_in("magi", "cat", "/data/gateway.key")
    model = stack.gateway("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "stream": True, "prompt": "a", "max_tokens": 1000, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{stack.gateway_port}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    received: list[bytes] = []
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        received.append(answer.readline())
        ended = threading.Event()

        def read() -> None:
            try:
                while part := answer.read1(65536):
                    received.append(part)
            except (OSError, http.client.HTTPException):
                # It was cut in the middle.
                pass
            ended.set()

        threading.Thread(target=read, daemon=True).start()
        stack.call("stop", timeout=600)
        assert ended.wait(10)
    assert b"".join(received).rstrip().endswith(b"data: [DONE]")
    # Not by KILL.
    codes = {service: stack.container(service)["State"]["ExitCode"] for service in ("magi", "gateway", "redis")}
    assert codes == {"magi": 0, "gateway": 0, "redis": 0}
    stack.call("down")
    assert stack.call("ps", "-a", "-q").split() == []
