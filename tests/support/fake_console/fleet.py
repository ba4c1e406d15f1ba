# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents of a fleet that does not exist, in the shapes of the API: for the page's tests and for work on the page."""

from __future__ import annotations

import random
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

GIB = 1024**3
MODELS = {
    "qwen3-8b-q4_k_m": ("Qwen3 8B (Q4_K_M)", "Q4", "qwen3", 5.0, 40960),
    "llama-3.3-70b-q4_k_m": ("Llama 3.3 70B (Q4_K_M)", "Q4", "llama", 42.5, 131072),
    "gemma-3-27b-q3_k_m": ("Gemma 3 27B (Q3_K_M)", "Q3", "gemma3", 13.4, 131072),
    "deepseek-r1-qwen3-8b-q2_k": ("DeepSeek R1 Qwen3 8B (Q2_K)", "Q2", "qwen3", 3.3, 131072),
    "bge-m3-q8_0": ("BGE M3 (Q8_0)", "Q8", "bert", 0.6, 8192),
}
CRASHES = [
    (
        "out of memory: cudaMalloc failed for 4096 MiB",
        "Lower ctx_size or n_gpu_layers in the profile, or free memory on GPU 0.",
    ),
    (
        "exit code 1 within 2 s: unknown argument --flash-atn",
        "Remove flash_atn from the profile; the nearest flag is flash_attn.",
    ),
    ("hung: no answer on /health for 60 s", "Restart it; its last log lines name the request that it was computing."),
]


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def before(seconds: float) -> str:
    """A time in the past."""
    return (
        datetime.fromtimestamp(time.time() - seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    )


@dataclass(frozen=True)
class Message:
    """What a stream sends: an event of a run without a name, or what the console says with one."""

    name: str
    run: str
    data: dict[str, Any]


class Fleet:
    """Hosts, servers, jobs and events; every method may be called from any thread."""

    def __init__(self, hosts: int = 50, servers: int = 4, seed: int = 7) -> None:
        self.random = random.Random(seed)
        self.lock = threading.Condition()
        self.messages: list[Message] = []
        self.as_of = now()
        self.plans: dict[str, dict[str, Any]] = {}
        self.profiles: dict[str, str] = {
            "edge": "description: Small models at the edge\nenabled_models:\n  - {tier: Q2}\n  - {tier: Q8}\n"
        }
        # When the logs of servers were read, by host and name.
        self.logs_read: dict[tuple[str, str], str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.job_events: dict[str, list[int]] = {}
        self.servers: dict[tuple[str, str], dict[str, Any]] = {}
        self.hosts: dict[str, dict[str, Any]] = {}
        for number in range(1, hosts + 1):
            self._add_host(number, servers)
        for host in self.hosts:
            self._count(host)

    def _add_host(self, number: int, servers: int) -> None:
        name = f"gpu{number}.rack{(number - 1) // 10 + 1}.example.com"
        picked = list(MODELS)[:servers] if servers <= len(MODELS) else list(MODELS)
        for position, model in enumerate(picked):
            self.servers[name, model] = self._server(name, model, 8080 + position, number, position)
        own = [s for (host, _), s in self.servers.items() if host == name]
        planned = sum(s["planned_bytes"] for s in own)
        has_gpu = number % 5 != 0
        self.hosts[name] = {
            "name": name,
            "address": f"10.0.{number // 250}.{number % 250 + 1}",
            "groups": ["models", "gpu" if has_gpu else "cpu"],
            "state": "ok",
            "as_of": self.as_of,
            "source": "events",
            "stale_since": None,
            "servers_total": len(own),
            "servers_ready": 0,
            "ram": {
                "total": 128 * GIB,
                "free": int(128 * GIB - sum(s["rss_bytes"] or 0 for s in own) - 9 * GIB),
                "planned": planned // 8,
            },
            "gpus": [
                {
                    "index": i,
                    "name": "NVIDIA L40S",
                    "total": 48 * GIB,
                    "free": int(48 * GIB - sum(s["vram_bytes"] or 0 for s in own) / 2),
                    "planned": int(planned * 0.45),
                }
                for i in range(2)
            ]
            if has_gpu
            else [],
            "drift": ["qwen3-8b-q4_k_m: ctx_size 4096 → 8192"] if number == 7 else None,
            "drift_since": before(5400) if number == 7 else None,
            "profile": "production",
            "deployed_at": None,
            "job": None,
        }

    def _server(self, host: str, model: str, port: int, number: int, position: int) -> dict[str, Any]:
        display, tier, _, size, _ = MODELS[model]
        failed = (number, position) in {(3, 1), (17, 2)}
        hung = (number, position) == (9, 0)
        reason, fix = CRASHES[0 if number == 3 else 1] if failed else CRASHES[2] if hung else (None, None)
        has_gpu = number % 5 != 0
        planned = int(size * 1.18 * GIB)
        real = int(planned * self.random.uniform(0.93, 1.04))
        return {
            "host": host,
            "name": model,
            "model_id": model,
            "display_name": display,
            "tier": tier,
            "port": port,
            "pid": None if failed else 20000 + number * 10 + position,
            "state": "failed" if failed else "hung" if hung else "ready",
            "is_ready": not failed and not hung,
            "uptime_seconds": None if failed else self.random.randint(600, 900000),
            "rss_bytes": None if failed else real // 9 if has_gpu else real,
            "vram_bytes": None if failed or not has_gpu else real,
            "planned_bytes": planned,
            "planned_ram_bytes": planned // 8 if has_gpu else planned,
            "planned_vram_bytes": planned - planned // 8 if has_gpu else 0,
            "restarts": 5 if failed else int(number == 21),
            "tokens_per_second": None if failed else round(self.random.uniform(8, 90), 1),
            "reason": reason,
            "fix": fix,
        }

    def _count(self, host: str) -> None:
        own = [s for (name, _), s in self.servers.items() if name == host]
        entry = self.hosts[host]
        entry["servers_ready"] = sum(s["is_ready"] for s in own)
        ready, total = entry["servers_ready"], entry["servers_total"]
        entry["state"] = "ok" if ready == total else "degraded" if ready else "failed"

    def publish(
        self, kind: str, data: dict[str, Any], host: str | None = None, run: str = "", check: bool = False
    ) -> None:
        """Append an event of a run and wake the streams."""
        with self.lock:
            seq = len(self.job_events.get(run, [])) + 1
            event = {"schema_version": 1, "collection_version": "0.1.0", "at": now(), "run": run, "seq": seq}
            event |= {"type": kind, "check": check, **({"host": host} if host else {}), "data": data}
            self._append(Message("", run, event))

    def say(self, name: str, document: dict[str, Any], run: str = "") -> None:
        """Append what the console itself says: a message with a name (job, host, server or end)."""
        with self.lock:
            self._append(Message(name, run, dict(document)))

    def _append(self, message: Message) -> None:
        self.messages.append(message)
        if message.run:
            self.job_events.setdefault(message.run, []).append(len(self.messages) - 1)
        self.lock.notify_all()

    def change_server(self, host: str, name: str, **changes: Any) -> None:
        """Change a server and say so."""
        with self.lock:
            server = self.servers[host, name]
            server.update(changes)
            old = dict(self.hosts[host])
            self._count(host)
            entry = self.hosts[host]
            self.say("server", {"host": host, "name": name, **changes})
            if (old["state"], old["servers_ready"]) != (entry["state"], entry["servers_ready"]):
                self.say("host", {"name": host, "state": entry["state"], "servers_ready": entry["servers_ready"]})

    def deploy(self, host: str, at: str) -> None:
        """Say that a run, of any controller, has deployed a host."""
        with self.lock:
            self.hosts[host]["deployed_at"] = at
            self.say("host", {"name": host, "deployed_at": at})

    def change_something(self) -> None:
        """One of the changes of a fleet at work: a rate, now and then a state."""
        host, name = self.random.choice(list(self.servers))
        server = self.servers[host, name]
        if server["state"] == "failed":
            return
        if self.random.random() < 0.02:
            is_ready = not server["is_ready"]
            self.change_server(
                host, name, is_ready=is_ready, state="ready" if is_ready else "loading", reason=None, fix=None
            )
        else:
            rate = max(0.0, (server["tokens_per_second"] or 30) + self.random.uniform(-9, 9))
            self.change_server(host, name, tokens_per_second=round(rate, 1))

    def add_job(
        self, verb: str, hosts: list[str], state: str = "running", age: float = 0, **more: Any
    ) -> dict[str, Any]:
        """A job; `more` are its other keys."""
        job = {
            "id": uuid.UUID(int=self.random.getrandbits(128), version=4).hex,
            "verb": verb,
            "variables": {},
            "state": state,
            "waits_for": None,
            "hosts": hosts,
            "rc": None,
            "created_at": before(age),
            "started_at": None if state == "queued" else before(age - 1),
            "ended_at": None,
            "by": "operator",
            "check": verb == "plan",
            "result": None,
            **more,
        }
        with self.lock:
            self.jobs[job["id"]] = job
        self.say("job", job, job["id"])
        return job

    def change_job(self, job: str, **changes: Any) -> None:
        """Change a job and say so; a job that has ended ends its stream."""
        with self.lock:
            self.jobs[job].update(changes)
            self.say("job", self.jobs[job], job)
            if self.jobs[job]["state"] not in {"queued", "running"}:
                self.say("end", {}, job)
