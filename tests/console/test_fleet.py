# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API says of real servers: state, plans that are applied or refused, profiles, and pages without script."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

Q2, Q3, Q4 = "tiny-llama-q2_k", "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"


def states(answer: Any) -> dict[str, str]:
    return {one["name"]: one["state"] for one in answer["servers"]}


def make_plan(live: Any, profile: str) -> dict[str, Any]:
    """The plan of a profile, as the API answers it."""
    made = live.console.operate.post("/api/v1/plans", json={"profile": profile})
    assert made.status_code == 202, made.text
    job = live.console.wait(made.json()["job"]["id"], seconds=120)
    assert job["state"] == "finished", job
    answer = live.console.read.get(f"/api/v1/plans/{job['result']['hash']}")
    assert answer.status_code == 200, answer.text
    plan: dict[str, Any] = answer.json()
    return plan


def test_host_and_servers_are_as_they_are_deployed(live: Any) -> None:
    # What memory is free after a deployment only a plan says.
    make_plan(live, "pair")
    found = live.wait_for(
        "/api/v1/hosts", lambda answer: answer["hosts"][0]["state"] == "ok" and answer["hosts"][0]["ram"]["free"]
    )
    (host,) = found["hosts"]
    assert (host["name"], host["servers_total"], host["servers_ready"], host["profile"]) == ("bed", 2, 2, "pair")
    assert host["ram"]["total"] > host["ram"]["free"] > host["ram"]["planned"] > 0
    assert (found["as_of"], host["stale_since"]) != (None, None) and host["stale_since"] is None
    servers = live.wait_for("/api/v1/servers", lambda answer: all(one["pid"] for one in answer["servers"]))
    pids = {one["name"]: one["pid"] for one in servers["servers"]}
    assert pids == live.bed.pids()
    assert [one["name"] for one in live.console.read.get("/api/v1/servers?tier=Q3").json()["servers"]] == [Q3]
    assert live.console.read.get("/api/v1/servers?state=failed").json()["servers"] == []


def test_server_has_its_command_line_and_memory_and_no_value_of_its_environment(live: Any) -> None:
    found = live.wait_for(f"/api/v1/servers/bed/{Q4}", lambda answer: answer["truth"] is not None)
    process = live.bed.processes()[Q4]
    assert found["argv"] == list(process.argv)
    assert "MAGI_LLAMA_REVISION" in found["environment_names"]
    assert found["revision"] == process.env["MAGI_LLAMA_REVISION"]
    assert found["estimate"]["ram_bytes"] > found["truth"]["ram_bytes"] > 0
    assert any(Q4 in line for line in found["log"])


def test_server_that_hangs_shows_in_the_next_sweep(live: Any) -> None:
    process = live.bed.pids()[Q4]
    os.kill(process, signal.SIGSTOP)
    try:
        found = live.wait_for("/api/v1/servers", lambda answer: states(answer)[Q4] == "unhealthy")
        (server,) = [one for one in found["servers"] if one["name"] == Q4]
        assert (found["source"], server["is_ready"]) == ("sweep", False)
        assert "did not answer" in server["reason"]
        assert live.console.read.get("/api/v1/hosts").json()["hosts"][0]["state"] == "degraded"
    finally:
        os.kill(process, signal.SIGCONT)
    live.wait_for("/api/v1/servers", lambda answer: states(answer)[Q4] == "ready")


def test_preview_of_a_change_does_not_change_what_is_deployed(live: Any) -> None:
    before = live.console.read.get("/api/v1/servers").json()["servers"]
    job = live.console.submit("site", profile="other", check=True)["id"]
    assert live.console.wait(job, seconds=120)["state"] == "finished"
    make_plan(live, "other")
    after = live.console.read.get("/api/v1/servers").json()["servers"]
    assert [one["name"] for one in after] == [one["name"] for one in before] == [Q4, Q3]
    assert live.console.read.get("/api/v1/hosts").json()["hosts"][0]["profile"] == "pair"


def test_plan_says_what_it_would_do_and_is_applied_once(live: Any) -> None:
    plan = make_plan(live, "other")
    host = plan["hosts"]["bed"]
    assert {one["name"]: one["action"] for one in host["servers"]} == {Q2: "start", Q3: "restart", Q4: "stop"}
    assert host["summary"] == "1 to start, 1 to restart, 1 to stop"
    changed = next(one for one in host["servers"] if one["name"] == Q3)
    assert changed["argv_diff"] == ["- --ctx-size 1024", "+ --ctx-size 2048"]
    ram = host["memory"]["ram"]
    assert ram["total"] > ram["free"] > ram["peak"] >= ram["after"] > 0 and ram["now"] > 0
    assert plan["hash"] in [one["hash"] for one in live.console.read.get("/api/v1/plans").json()["plans"]]

    applied = live.console.operate.post(f"/api/v1/plans/{plan['hash']}/apply", json={"allow_downtime": True})
    assert applied.status_code == 202, applied.text
    job = live.console.wait(applied.json()["job"]["id"], seconds=120)
    assert (job["state"], job["verb"]) == ("finished", "site"), job
    assert sorted(live.bed.processes()) == [Q2, Q3]
    live.wait_for("/api/v1/servers", lambda answer: states(answer) == {Q2: "ready", Q3: "ready"})

    again = live.console.operate.post(f"/api/v1/plans/{plan['hash']}/apply", json={})
    assert (again.status_code, job["id"] in again.json()["detail"]) == (409, True)
    answer = live.console.operate.post("/api/models/profile/activate", json={"profile_name": "pair"}, timeout=180)
    assert sorted(answer.json()["started"]) == [Q3, Q4], answer.text


def test_plan_that_there_is_not_is_a_problem(live: Any) -> None:
    answer = live.console.operate.post(f"/api/v1/plans/{'0' * 64}/apply", json={})
    assert (answer.status_code, answer.json()["status"]) == (404, 404)


def test_profile_is_checked_previewed_and_saved_next_to_the_inventory(live: Any) -> None:
    text = "description: From the console.\nenabled_models: [{tier: Q2}]\nparameters: {ctx_size: 512}\n"
    live.wait_for("/api/v1/models", lambda answer: len(answer["models"]) == 3)

    def put(**body: Any) -> Any:
        return live.console.operate.put("/api/v1/profiles/mine", json=body)

    seen = put(text=text, preview=True).json()
    assert (seen["saved"], seen["errors"], seen["selects"]["bed"]["models"]) == (False, [], [Q2])
    assert seen["selects"]["bed"]["needs_bytes"] > 0 and "+description: From the console." in seen["diff"]
    path = Path(seen["path"])
    assert not path.exists() and path.parent == live.bed.inventory / ".magi-llama/profiles"
    wrong = put(text=text.replace("tier", "teir")).json()
    assert (wrong["saved"], path.exists()) == (False, False)
    assert "teir" in wrong["errors"][0] and str(path) in wrong["errors"][0]
    assert put(text=text).json()["saved"] and path.read_text() == text
    known = {one["name"]: one for one in live.console.read.get("/api/v1/profiles").json()["profiles"]}
    assert (known["mine"]["text"], known["mine"]["builtin"], known["pair"]["active_on"]) == (text, False, ["bed"])
    lost = put(text=text + "# x\n", expected_sha256="0" * 64)
    assert (lost.status_code, path.read_text()) == (409, text)
    assert live.console.read.put("/api/v1/profiles/mine", json={"text": text}).status_code == 403


def test_models_and_capacity_are_those_of_the_registry(live: Any) -> None:
    # What a deployment reports is short; the console then asks for the whole registry.
    found = live.wait_for(
        "/api/v1/models", lambda answer: [one["context_length"] for one in answer["models"]] == [8192] * 3
    )
    assert {one["id"]: one["hosts"] for one in found["models"]} == {Q2: ["bed"], Q3: ["bed"], Q4: ["bed"]}
    # What memory is free after a deployment only a plan says.
    make_plan(live, "pair")
    found = live.wait_for("/api/v1/capacity", lambda answer: answer["hosts"][0]["models"][0]["fits"] != "unknown")
    (host,) = found["hosts"]
    assert {one["model_id"]: one["fits"] for one in host["models"]} == {Q2: "ram", Q3: "ram", Q4: "ram"}


@pytest.mark.parametrize("path", ["/status", "/docs"])
def test_pages_without_script_work_under_the_policy(live: Any, path: str) -> None:
    answer = live.console.read.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for forbidden in ("<script", "style=", " onclick", "http://", "https://"):
        assert forbidden not in answer.text, forbidden
    assert live.console.anonymous.get("/plain.css").headers["content-type"].startswith("text/css")


def test_status_page_shows_servers_after_its_own_sign_in(live: Any) -> None:
    with live.console.browser() as browser:
        assert (browser.get("/status").status_code, browser.post("/status", data={"token": "wrong"}).status_code) == (
            401,
            401,
        )
        token = live.console.read.headers["Authorization"].removeprefix("Bearer ")
        page = browser.post("/status", data={"token": token}, follow_redirects=True)
    assert page.status_code == 200
    for text in (Q4, "● ready", "2 of 2 servers are ready"):
        assert text in page.text
