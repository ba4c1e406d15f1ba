# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents about a fleet that does not exist: a server, plans, profiles, models, and what fits where."""

from __future__ import annotations

import difflib
import hashlib
from typing import Any

from .fleet import GIB, MODELS, Fleet, before, now

TEXTS = {
    "development": "description: Every model, with small contexts\nenabled_models:\n  - {kind: model}\nparameters:\n  ctx_size: 4096\n",
    "fast-only": "description: Tier Q2\nenabled_models:\n  - {tier: Q2}\n",
    "production": "description: The quality tiers, Q3 and Q4\nenabled_models:\n  - {tier: Q4}\n  - {tier: Q3}\nparameters:\n  ctx_size: 8192\n  parallel: 2\n  n_gpu_layers: auto\n",
}
KEYS = ("description", "enabled_models", "parameters", "memory_budget", "start")


def server_detail(fleet: Fleet, host: str, name: str) -> dict[str, Any] | None:
    """GET /servers/{host}/{name}."""
    server = fleet.servers.get((host, name))
    if server is None:
        return None
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
        "as_of": now(),
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
        "slots_total": 2,
        "context_size": 4096,
        "environment_names": ["LLAMA_API_KEY", "CUDA_VISIBLE_DEVICES"],
        "slots": [
            {"id": 0, "n_ctx": 4096, "is_processing": True},
            {"id": 1, "n_ctx": 4096, "is_processing": False},
        ],
        "log": [f"{now()}  {server['reason']}", f"{now()}  {server['fix']}"] if server["reason"] else [],
        "log_tail": log if (host, name) in fleet.logs_read else None,
        "log_tail_as_of": fleet.logs_read.get((host, name)),
        "rates": [
            {"at": before(600 * (20 - n)), "tokens_per_second": 30.0 + (n * 7) % 13}
            for n in range(20 if server["pid"] else 0)
        ],
        "estimate": {"ram_bytes": server["planned_ram_bytes"], "vram_bytes": server["planned_vram_bytes"]},
        "truth": truth,
        "revision": "9f2c1e7ab04d5f66c1d2",
    }


def keys() -> list[dict[str, Any]]:
    """GET /keys."""
    made = {"created_at": "2026-11-01T08:00:00.000Z"}
    return [{"name": "operator", "role": "operate", **made}, {"name": "wallboard", "role": "read", **made}]


def audit(fleet: Fleet) -> list[dict[str, Any]]:
    """GET /audit: the jobs, and one who signed in and one who did not."""
    jobs = sorted(fleet.jobs.values(), key=lambda job: job["created_at"], reverse=True)
    found: list[dict[str, Any]] = [
        {
            **{"at": job["created_at"], "by": job["by"], "action": "job.create", "target": job["id"]},
            **{"detail": {"verb": job["verb"], **job["variables"]}, "address": "192.0.2.7"},
        }
        for job in jobs
    ]
    of_session = {"target": "", "detail": {}, "address": "192.0.2.9"}
    found.append({"at": before(9000), "by": "wallboard", "action": "session.create", **of_session})
    return [*found, {"at": before(9100), "by": "", "action": "session.refused", **of_session}]


def make_plan(fleet: Fleet, job: str, hosts: list[str], profile: str | None, limit: list[str] | None) -> dict[str, Any]:
    """A plan that changes the first two hosts: one server restarted, one started, one stopped."""
    plan = {
        "job": job,
        "source": "status",
        "profile": profile,
        "limit": ",".join(limit) if limit else None,
        "made_at": now(),
        "as_of": now(),
        "is_outdated": False,
        "hosts": {host: _host_plan(fleet, host, place) for place, host in enumerate(hosts)},
    }
    plan["hash"] = hashlib.sha256(f"{len(fleet.plans)} {profile} {hosts}".encode()).hexdigest()
    fleet.plans[plan["hash"]] = plan
    return plan


def plan_head(plan: dict[str, Any]) -> dict[str, Any]:
    """Its entry in the list."""
    return {key: plan[key] for key in ("hash", "job", "profile", "limit", "made_at")}


def _host_plan(fleet: Fleet, host: str, place: int) -> dict[str, Any]:
    own = [server for (of, _), server in fleet.servers.items() if of == host]
    changes = {"qwen3-8b-q4_k_m": ("restart", "ctx_size 4096 → 8192", ["- --ctx-size 4096", "+ --ctx-size 8192"])}
    if place == 0:
        changes["bge-m3-q8_0"] = (
            "start",
            "new in the profile",
            ["+ --model /models/bge-m3-q8_0.gguf", "+ --embeddings"],
        )
        changes["deepseek-r1-qwen3-8b-q2_k"] = ("stop", "no longer in the profile", [])
    if place > 1:
        changes = {}
    names = [*[server["name"] for server in own], *[name for name in changes if (host, name) not in fleet.servers]]
    servers = []
    for name in names:
        action, reason, lines = changes.get(name, ("keep", "runs as planned", []))
        away = 12.5 if action == "restart" and place == 1 else None
        servers.append(
            {
                "name": name,
                "model_id": name,
                "action": action,
                "reason": reason,
                "argv_diff": lines,
                "downtime_seconds": away,
                "estimate": None,
            }
        )
    used = sum(server["rss_bytes"] or 0 for server in own)
    held = sum(server["vram_bytes"] or 0 for server in own)
    counts = [
        f"{sum(one['action'] == action for one in servers)} to {action}"
        for action in ("start", "restart", "stop", "keep")
    ]
    has_gpu = bool(fleet.hosts[host]["gpus"])
    return {
        "summary": ", ".join(one for one in counts if not one.startswith("0 ")),
        "downtime_seconds": 12.5 if place == 1 else None,
        "memory": {
            "ram": {"total": 128 * GIB, "free": 100 * GIB, "now": used, "peak": used + 6 * GIB, "after": used + GIB},
            "gpu": {
                "total": 96 * GIB,
                "free": 96 * GIB - held,
                "now": held,
                "peak": held + 7 * GIB,
                "after": held + 2 * GIB,
            }
            if has_gpu
            else None,
            "gpus": [],
        },
        "warnings": ["llama-3.3-70b-q4_k_m: 12 of 80 layers do not fit on the GPUs and go to RAM"]
        if place == 0
        else [],
        "error": None,
        "servers": servers,
    }


def profiles(fleet: Fleet) -> list[dict[str, Any]]:
    """GET /profiles."""
    return [
        {
            "name": name,
            "path": f"/opt/magi/profiles/{name}.yml" if name in TEXTS else f"/etc/fleet/profiles/{name}.yml",
            "description": text.split("\n", 1)[0].removeprefix("description: "),
            "builtin": text == TEXTS.get(name),
            "active_on": [host for host, one in fleet.hosts.items() if one["profile"] == name],
            "text": text,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        for name, text in sorted({**TEXTS, **fleet.profiles}.items())
    ]


def save_profile(fleet: Fleet, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """PUT /profiles/{name}: an unknown key is an error, as in the collection."""
    old, text = {**TEXTS, **fleet.profiles}.get(name, ""), body["text"]
    keys = [line.split(":")[0] for line in text.splitlines() if line and not line.startswith((" ", "#", "-"))]
    errors = [
        f"/etc/fleet/profiles/{name}.yml: unknown key {key}. Known: {', '.join(KEYS)}"
        for key in keys
        if key not in KEYS
    ]
    tiers = [tier for tier in ("Q2", "Q3", "Q4", "Q8") if f"tier: {tier}" in text]
    picked = [model for model, (_, tier, *_rest) in MODELS.items() if tier in tiers]
    needs = int(sum(MODELS[model][3] for model in picked) * 1.18 * GIB)
    is_saved = not body.get("preview") and not errors
    if is_saved:
        fleet.profiles[name] = text
    lines = difflib.unified_diff(old.splitlines(True), text.splitlines(True), f"a/{name}.yml", f"b/{name}.yml")
    return {
        "diff": "".join(lines),
        "errors": errors,
        "warnings": [],
        "saved": is_saved,
        "path": f"/etc/fleet/profiles/{name}.yml",
        "commit": "4be1f09c77aa0b1d" if is_saved else None,
        "selects": {}
        if errors
        else {host: {"models": picked, "missing": [], "needs_bytes": needs} for host in list(fleet.hosts)[:6]},
    }


def models(fleet: Fleet) -> dict[str, Any]:
    """GET /models."""
    hosts = list(fleet.hosts)
    found = []
    for place, (name, (display, tier, architecture, size, context)) in enumerate(MODELS.items()):
        origin = {
            "sha256": hashlib.sha256(name.encode()).hexdigest(),
            "source": f"https://models.example.com/{name}.gguf",
            "license": "apache-2.0",
        }
        found.append(
            {
                "id": name,
                "display_name": display,
                "hosts": hosts,
                "kind": "embedding" if architecture == "bert" else "model",
                "tier": tier,
                "architecture": architecture,
                "size_bytes": int(size * GIB),
                "path": f"/models/{name}.gguf",
                "context_length": context,
                "provenance": None if place == 2 else origin,
            }
        )
    rejected = [
        {
            "host": hosts[1],
            "path": "/models/mistral-small-q4_k_m.gguf",
            "reason": "truncated: tensor data ends at byte 14333915904, the file has 9663676416",
        }
    ]
    return {"models": found, "rejected": rejected}


def capacity(fleet: Fleet) -> list[dict[str, Any]]:
    """GET /capacity."""
    found = []
    for name, host in fleet.hosts.items():
        vram = [gpu["free"] for gpu in host["gpus"]]
        fits = []
        for model, (*_, size, _context) in MODELS.items():
            need = int(size * 1.18 * GIB)
            place = "gpu" if vram and need <= max(vram) else "ram" if need <= host["ram"]["free"] else "no"
            fits.append(
                {
                    "model_id": model,
                    "needs_bytes": need,
                    "basis": "plan",
                    "is_on_host": model != "bge-m3-q8_0",
                    "fits": place,
                }
            )
        found.append({"host": name, "ram_free_bytes": host["ram"]["free"], "vram_free_bytes": vram, "models": fits})
    return found
