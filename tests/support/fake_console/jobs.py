# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What jobs of the fake fleet do, event by event, and the documents that the page reads about them."""

from __future__ import annotations

import time
from typing import Any

from .fleet import Fleet, before


def play_restart(fleet: Fleet, job: dict[str, Any], pace: float) -> None:
    """The events of a restart, `pace` seconds apart."""
    run, hosts = job["id"], job["hosts"]
    names = job["variables"].get("servers")
    say = fleet.publish
    say(
        "run_started",
        {
            "playbook": f"{job['verb']}.yml",
            "profile": "production",
            "check": job["check"],
            "controller": "ops1",
            "user": "ops",
        },
        run=run,
    )
    say("play_started", {"name": "Restart servers", "hosts": hosts}, run=run)
    say("line", {"text": f"{job['verb']} on {len(hosts)} host(s)"}, run=run)
    for number, task in enumerate(
        ["Take the run lock", "Read the deployment", "Restart the servers", "Wait for health"], 1
    ):
        say("task_started", {"name": task, "number": number}, run=run)
        time.sleep(pace)
        if job["state"] == "cancelled":
            return
    for host in hosts:
        for (of, name), server in list(fleet.servers.items()):
            if of != host or (names and name not in names):
                continue
            stops = job["verb"] == "stop"
            state = "stopped" if stops else "ready"
            fleet.change_server(host, name, state=state, is_ready=not stops, reason=None, fix=None, uptime_seconds=0)
            kind = "server_stopped" if stops else "server_ready"
            say(
                kind,
                {"server": name, "port": server["port"], "seconds": 3.4, "reason": None, "fix": None},
                host=host,
                run=run,
            )
            say("line", {"text": f"{host}  {name}  {state} after 3.4 s"}, run=run)
            time.sleep(pace)
    say(
        "run_ended",
        {"rc": 0, "hosts": {host: {"ok": 9, "changed": 1, "failed": 0, "unreachable": 0} for host in hosts}},
        run=run,
    )
    fleet.change_job(run, state="finished", rc=0, ended_at=before(0))


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
    fleet.publish("lock_waited", {"holder": "ci-runner-4", "seconds": 12}, host=host, run=run)
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


def server_detail(fleet: Fleet, host: str, name: str) -> dict[str, Any] | None:
    """GET /servers/{host}/{name}."""
    server = fleet.servers.get((host, name))
    if server is None:
        return None
    planned = server["planned_bytes"]
    truth = (
        None if server["pid"] is None else {"ram_bytes": server["rss_bytes"], "vram_bytes": server["vram_bytes"] or 0}
    )
    log = [
        f"llama_model_loader: loaded meta data with 28 key-value pairs and 291 tensors from /models/{name}.gguf (version GGUF V3)",
        "load_tensors: offloaded 33/33 layers to GPU",
        "llama_context: n_ctx = 8192, n_batch = 2048, flash_attn = auto",
        f"main: server is listening on http://127.0.0.1:{server['port']}",
        *[
            f"srv  log_server_r: done request: POST /v1/chat/completions 127.0.0.1 200 ({n * 37 % 900} ms)"
            for n in range(1, 22)
        ],
    ]
    if server["reason"]:
        log += [
            f"ggml_backend_cuda_buffer_type_alloc_buffer: {server['reason']}",
            "llama_server: exiting due to model loading error",
        ]
    return {
        "as_of": fleet.events[-1]["at"] if fleet.events else None,
        "source": "sweep",
        **server,
        "argv": [
            "/usr/local/bin/llama-server",
            "--model",
            f"/models/{name}.gguf",
            "--alias",
            name,
            "--host",
            "127.0.0.1",
            "--port",
            str(server["port"]),
            "--ctx-size",
            "8192",
            "--parallel",
            "2",
            "--n-gpu-layers",
            "all",
            "--flash-attn",
            "auto",
            "--chat-template-kwargs",
            '{"enable_thinking": false}',
            "--metrics",
            "--slots",
        ],
        "environment_names": ["LLAMA_API_KEY", "CUDA_VISIBLE_DEVICES"],
        "slots": [
            {"id": 0, "n_ctx": 4096, "is_processing": True, "n_past": 1312},
            {"id": 1, "n_ctx": 4096, "is_processing": False, "n_past": 0},
        ],
        "log": log,
        "estimate": {"ram_bytes": planned // 8, "vram_bytes": planned if server["vram_bytes"] else 0},
        "truth": truth,
        "revision": "9f2c1e7ab04d5f66c1d2",
    }
