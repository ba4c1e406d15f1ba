# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What jobs of the fake fleet do, event by event, and the documents that the page reads about them."""

from __future__ import annotations

import time
from typing import Any

from .documents import make_plan
from .fleet import Fleet, before

Job = dict[str, Any]
COUNTS = {"ok": 9, "changed": 1, "failed": 0, "unreachable": 0}


def play(fleet: Fleet, job: Job, pace: float) -> None:
    """The events of a job, `pace` seconds apart, and its end."""
    run = job["id"]
    started = {
        "playbook": f"{job['verb']}.yml",
        "profile": "production",
        "check": job["check"],
        "controller": "ops1",
        "user": "ops",
    }
    fleet.publish("run_started", started, run=run, check=job["check"])
    fleet.publish("line", {"text": f"{job['verb']} on {len(job['hosts'])} host(s)"}, run=run)
    plays = {"plan": play_plan, "rollout": play_rollout, "rollback": play_rollback, "status": play_status}
    rc = plays.get(job["verb"], play_servers)(fleet, job, pace)
    if job["state"] == "cancelled":
        return
    fleet.publish("run_ended", {"rc": rc, "hosts": dict.fromkeys(job["hosts"], COUNTS)}, run=run)
    if job["verb"] in {"site", "rollout", "rollback"} and not job["check"]:
        for host in job["hosts"]:
            fleet.deploy(host, before(0))
    fleet.change_job(run, state="failed" if rc else "finished", rc=rc, ended_at=before(0))


def play_servers(fleet: Fleet, job: Job, pace: float) -> int:
    """Servers become ready, or are stopped."""
    run, names = job["id"], job["variables"].get("servers")
    for number, task in enumerate(
        ["Take the run lock", "Read the deployment", "Restart the servers", "Wait for health"], 1
    ):
        fleet.publish("task_started", {"name": task, "number": number}, run=run)
        time.sleep(pace)
    for host, name in list(fleet.servers):
        if host not in job["hosts"] or (names and name not in names) or job["state"] == "cancelled":
            continue
        server, stops = fleet.servers[host, name], job["verb"] == "stop"
        state = "stopped" if stops else "ready"
        fleet.change_server(host, name, state=state, is_ready=not stops, reason=None, fix=None, uptime_seconds=0)
        outcome = {"server": name, "port": server["port"], "seconds": 3.4, "reason": None, "fix": None}
        fleet.publish("server_stopped" if stops else "server_ready", outcome, host=host, run=run)
        fleet.publish("line", {"text": f"{host}  {name}  {state} after 3.4 s"}, run=run)
        time.sleep(pace)
    return 0


def play_status(fleet: Fleet, job: Job, pace: float) -> int:
    """The state of all servers, and the logs that were asked for."""
    time.sleep(pace)
    for host in job["hosts"]:
        for name in job["variables"].get("output_log", ()):
            fleet.logs_read[host, name] = before(0)
    return 0


def play_plan(fleet: Fleet, job: Job, pace: float) -> int:
    """A plan of every host."""
    run = job["id"]
    fleet.publish("task_started", {"name": "Plan the servers", "number": 3}, run=run, check=True)
    time.sleep(pace)
    plan = make_plan(fleet, run, job["hosts"], job["variables"].get("profile"), job["variables"].get("limit"))
    for host in job["hosts"]:
        fleet.publish("plan", {"plan": plan["hosts"][host]}, host=host, run=run, check=True)
        fleet.publish("line", {"text": f"{host}  {plan['hosts'][host]['summary']}"}, run=run, check=True)
    job["result"] = {"kind": "plan", "hash": plan["hash"]}
    return 0


def play_rollback(fleet: Fleet, job: Job, pace: float) -> int:
    """The difference to the previous deployment, and with it done its server."""
    lines = ["--- launch config now", "+++ launch config before", "-  --ctx-size 8192", "+  --ctx-size 4096"]
    for host in job["hosts"]:
        fleet.publish("line", {"text": "\n".join(lines)}, host=host, run=job["id"], check=job["check"])
    return 0 if job["check"] else play_servers(fleet, job, pace)


def play_rollout(fleet: Fleet, job: Job, pace: float) -> int:
    """A canary and a batch that are updated, and a batch in which one host fails."""
    run, hosts = job["id"], job["hosts"]
    fleet.publish("play_started", {"name": "Plan every host without changing any", "hosts": hosts}, run=run, check=True)
    size = max(1, len(hosts) // 4)
    batches = [hosts[:1], *[hosts[at : at + size] for at in range(1, len(hosts), size)]]
    done: dict[str, Any] = {}
    for number, batch in enumerate(batches):
        fleet.publish("play_started", {"name": "Roll out, batch by batch", "hosts": batch}, run=run)
        for host in batch:
            is_bad = number == 2 and host == batch[-1]
            done[host] = rollout_host(host, is_bad)
            kind = "server_failed" if is_bad else "server_ready"
            reason = "out of memory" if is_bad else None
            fleet.publish(
                kind, {"server": "qwen3-8b-q4_k_m", "seconds": 4.1, "reason": reason, "fix": None}, host=host, run=run
            )
            time.sleep(pace)
            fleet.publish(
                "rollout", {"rollout": rollout_document({host: done[host]}, 4.0 * len(done))}, host=host, run=run
            )
        if any(host["state"] == "failed" for host in done.values()):
            break
    rest = {
        host: {**rollout_host(host, False), "state": "untouched", "seconds": None, "actions": {}, "rollback": None}
        for host in hosts
        if host not in done
    }
    job["result"] = rollout_document({**done, **rest}, 4.0 * len(done))
    fleet.publish("rollout", {"rollout": job["result"]}, run=run)
    return 2 if rest or any(host["state"] == "failed" for host in done.values()) else 0


def rollout_host(host: str, is_bad: bool) -> dict[str, Any]:
    """A host's part of the document of a rollout."""
    return {
        "state": "failed" if is_bad else "updated",
        "seconds": 4.1,
        "total_servers": 4,
        "ready_servers": 3 if is_bad else 4,
        "actions": {"restart": 1},
        "task": "Check that every server is ready" if is_bad else None,
        "error": "3 of 4 servers are ready\nqwen3-8b-q4_k_m: out of memory" if is_bad else None,
        "rollback": f"ansible-playbook playbooks/rollback.yml --limit {host}" if is_bad else None,
    }


def rollout_document(hosts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The document of a rollout so far."""
    states = ("updated", "unchanged", "planned", "failed", "untouched")
    counts = {state: sum(host["state"] == state for host in hosts.values()) for state in states}
    is_complete = not counts["failed"] and not counts["untouched"]
    return {"kind": "rollout", "is_complete": is_complete, **counts, "seconds": seconds, "hosts": hosts}


def add_past_jobs(fleet: Fleet) -> None:
    """What the list of jobs shows at first."""
    hosts = list(fleet.hosts)
    fleet.add_job("status", hosts, "finished", 86400, rc=0, ended_at=before(86390))
    failed = fleet.add_job(
        "site",
        hosts[2:3],
        "failed",
        7200,
        rc=2,
        ended_at=before(7100),
        variables={"profile": "production", "limit": hosts[2]},
    )
    run, host = failed["id"], hosts[2]
    fleet.publish("run_started", {"playbook": "site.yml", "profile": "production", "check": False}, run=run)
    fleet.publish("plan", {"plan": {"servers": [{"action": "keep"}] * 3 + [{"action": "start"}]}}, host=host, run=run)
    waited = {"holder": "ci-runner-4", "since": before(7190)}
    fleet.publish("lock_waited", {**waited, "seconds": 0, "has_lock": False}, host=host, run=run)
    fleet.publish("lock_waited", {**waited, "seconds": 12, "has_lock": True}, host=host, run=run)
    server = fleet.servers[host, "llama-3.3-70b-q4_k_m"]
    fleet.publish(
        "server_failed",
        {"server": server["name"], "port": 8081, "seconds": 8.2, "reason": server["reason"], "fix": server["fix"]},
        host=host,
        run=run,
    )
    fleet.publish(
        "task_failed",
        {"task": "Check that every server is ready", "msg": "3 of 4 servers are ready"},
        host=host,
        run=run,
    )
    fleet.publish(
        "line",
        {"text": f"{host}: 3 of 4 servers are ready\n  llama-3.3-70b-q4_k_m  failed  {server['reason']}"},
        run=run,
    )
    fleet.publish(
        "run_ended", {"rc": 2, "hosts": {host: {"ok": 41, "changed": 2, "failed": 1, "unreachable": 0}}}, run=run
    )
    running = fleet.add_job("restart", hosts[:2], "running", 30, variables={"servers": ["qwen3-8b-q4_k_m"]})
    fleet.publish("task_started", {"name": "Wait for health", "number": 14}, run=running["id"])
    fleet.publish("drained", {"server": "qwen3-8b-q4_k_m", "seconds": 6.1}, host=hosts[0], run=running["id"])
    fleet.publish("server_ready", {"server": "qwen3-8b-q4_k_m", "seconds": 4.2}, host=hosts[0], run=running["id"])
    fleet.publish("line", {"text": f"{hosts[0]}  qwen3-8b-q4_k_m  ready after 4.2 s"}, run=running["id"])
    fleet.add_job("verify", hosts[:1], "queued", 20, waits_for={"host": hosts[0], "job": running["id"]})
    rollout = fleet.add_job("rollout", hosts[:10], "running", 4000, variables={"profile": "production"}, check=False)
    play(fleet, rollout, 0)
    play(fleet, fleet.add_job("plan", hosts, "running", 3000, variables={"profile": "production"}), 0)
