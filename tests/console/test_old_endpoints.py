# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoints of the earlier system, with curl as its users call them: paths and keys are unchanged."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.running_gateway import running, server

Q2, Q3, Q4 = "tiny-llama-q2_k", "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"
STATUS_KEYS = {"total_servers", "ready_servers", "servers"}


def curl(live: Any, *arguments: str) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers of an answer. The last argument is the path."""
    *options, path = arguments
    token = live.console.operate.headers["Authorization"]
    command = ["curl", "-sS", "-i", "-H", f"Authorization: {token}", *options, f"{live.console.url}{path}"]
    output = subprocess.check_output(command, text=True)
    head, _, body = output.partition("\n\n")
    first, *rest = head.splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return int(first.split()[1]), json.loads(body), headers


def test_health_needs_no_token(live: Any) -> None:
    output = subprocess.check_output(["curl", "-sS", f"{live.console.url}/health"], text=True)
    assert json.loads(output) == {"status": "ok"}


def test_registry_has_every_model(live: Any) -> None:
    live.wait_for("/api/v1/models", lambda answer: len(answer["models"]) == 3)
    status, body, headers = curl(live, "/api/models/registry")
    assert (status, set(body)) == (200, {"models", "total", "updated_at"})
    assert ([one["id"] for one in body["models"]], body["total"]) == ([Q2, Q3, Q4], 3)
    assert body["updated_at"] == headers["x-magi-as-of"]


def test_servers_and_both_names_of_the_status(live: Any) -> None:
    status, body, headers = curl(live, "/api/models/servers")
    assert (status, set(body), body["total"]) == (200, {"servers", "total"}, 2)
    assert headers["x-magi-source"] in ("events", "sweep", "status")
    keys = {
        "name",
        "model_id",
        "display_name",
        "port",
        "pid",
        "is_ready",
        "tier",
        "state",
        "uptime_seconds",
        "rss_bytes",
    }
    assert all(keys <= set(server) for server in body["servers"])
    for path in ("/api/models/status", "/api/models/management/servers"):
        status, body, _ = curl(live, path)
        assert (status, set(body), body["total_servers"], body["ready_servers"]) == (200, STATUS_KEYS, 2, 2)


def test_profiles_name_the_active_one(live: Any) -> None:
    status, body, _ = curl(live, "/api/models/profiles")
    assert (status, set(body), body["active_profile"]) == (200, {"profiles", "active_profile"}, "pair")
    assert {"pair", "other", "production", "development"} <= set(body["profiles"])


def test_stop_and_start_wait_until_it_is_so(live: Any) -> None:
    status, body, headers = curl(live, "-X", "POST", f"/api/models/{Q4}/stop")
    assert (status, body) == (200, {"name": Q4, "port": live.bed.port, "status": "stopped"})
    assert live.bed.status()[Q4]["state"] == "stopped"
    assert live.console.job(headers["x-magi-job"])["verb"] == "stop"
    begun = time.monotonic()
    status, body, _ = curl(live, "-X", "POST", f"/api/models/{Q4}/start")
    print(f"start of one server, POST to ready: {time.monotonic() - begun:.1f} s")
    assert (status, body) == (200, {"name": Q4, "port": live.bed.port, "status": "ready"})
    assert live.bed.status()[Q4]["is_ready"]


def test_stop_and_start_of_all(live: Any) -> None:
    status, body, _ = curl(live, "-X", "POST", "/api/models/stop")
    assert (status, set(body), sorted(body["stopped"])) == (200, {"stopped"}, [Q3, Q4])
    assert live.bed.processes() == {}
    status, body, _ = curl(live, "-X", "POST", "/api/models/start")
    assert (status, set(body)) == (200, {"started", "failed"})
    assert (sorted(body["started"]), body["failed"]) == ([Q3, Q4], [])


def test_profile_is_activated_and_back(live: Any) -> None:
    for profile, servers in (("other", [Q2, Q3]), ("pair", [Q3, Q4])):
        status, body, _ = curl(
            live,
            *("-X", "POST", "-H", "Content-Type: application/json"),
            *("-d", json.dumps({"profile_name": profile}), "/api/models/profile/activate"),
        )
        assert (status, set(body), body["profile"]) == (200, {"profile", "started"}, profile)
        assert sorted(body["started"]) == servers
        assert curl(live, "/api/models/profiles")[1]["active_profile"] == profile


def test_no_wait_answers_at_once_with_the_job(live: Any) -> None:
    status, body, headers = curl(live, "-X", "POST", f"/api/models/{Q4}/start?wait=0")
    assert (status, body["name"]) == (202, Q4)
    assert live.console.wait(headers["location"].rsplit("/", 1)[-1])["state"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "status", "nearest"),
    [
        (("-X", "POST", "/api/models/tiny-llama-q4_k_n/start"), 404, Q4),
        (
            (
                "-X",
                "POST",
                "-H",
                "Content-Type: application/json",
                "-d",
                '{"profile_name": "pear"}',
                "/api/models/profile/activate",
            ),
            422,
            "pair",
        ),
        (("/api/models/servers?host=bad",), 404, "bed"),
    ],
    ids=["server", "profile", "host"],
)
def test_wrong_name_is_a_problem_with_the_nearest(
    live: Any, arguments: tuple[str, ...], status: int, nearest: str
) -> None:
    code, body, headers = curl(live, *arguments)
    assert (code, headers["content-type"]) == (status, "application/problem+json")
    assert nearest in body["nearest"] and nearest in body["fix"]


def test_model_is_unloaded_and_loaded_through_a_gateway(live: Any, tmp_path: Path) -> None:
    """As Open WebUI does it: the gateway asks the console, which runs the playbooks."""
    key = "a-key-of-open-webui"
    backends = [Backend(Q4, "Q4", "Q4", "model", (server(live.bed.port),))]
    clients = [Client("webui", hashlib.sha256(key.encode()).hexdigest(), operator=True)]
    token = live.console.operate.headers["Authorization"].removeprefix("Bearer ")
    with running(tmp_path, backends, clients, console_url=live.console.url, console_token=token) as gateway:
        with gateway.client(key) as asking:
            asking.timeout = 120
            assert asking.post("/models/unload", json={"model": Q4}).json() == {"success": True}
            assert live.bed.status()[Q4]["state"] == "stopped"
            gateway.wait_until({f"s_{live.bed.port}": "DOWN"})
            assert asking.post("/models/load", json={"model": Q4}).json() == {"success": True}
        assert live.bed.status()[Q4]["is_ready"]
    answer = live.console.operate.post(f"/api/v1/models/{Q4}/load").json()
    [one] = answer["servers"]
    assert (answer["model_id"], one["name"], one["state"]) == (Q4, Q4, "ready")
    unknown = live.console.operate.post("/api/v1/models/tiny-llama-q5/unload")
    assert (unknown.status_code, unknown.json()["nearest"][0][:11]) == (404, "tiny-llama-")
