# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of hosts to be exported, and what another program reads in the files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import HostPlan, Settings, workloads_of
from ansible_collections.magi.llama.plugins.plugin_utils.export_text import to_text

SETTINGS = Settings("llama-server:1", "haproxy:3.2", "/usr/bin/llama-server", "models", "llama-key")
MIB = 1024**2


def server(name: str, port: int, **more: Any) -> dict[str, Any]:
    """A planned server, as server_plan returns it."""
    model = more.pop("model", name)
    argv = ["/opt/llama/bin/llama-server", "--model", f"/models/{model}.gguf", "--alias", model]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--metrics", "--parallel", "2", "--threads", "4"]
    # Both formats put variables into texts, each at another mark.
    argv += ["--chat-template", "$(HOME) ${HOME} $HOME"]
    key = more.get("api_key_file")
    return {
        "name": name,
        "model_id": model,
        "display_name": f"The {model}",
        "tier": "Q4",
        "kind": "model",
        "host": "127.0.0.1",
        "port": port,
        "argv": argv + (["--api-key-file", f"/run/credentials/{name}/api-keys"] if key else []),
        "env": {"MAGI_LLAMA_STATE": "/var/lib/magi-llama", "XDG_CONFIG_HOME": "/nonexistent"},
        "revision": "0123456789ab",
        "memory": {"weights_bytes": 300 * MIB, "ram_bytes": 400 * MIB + 1, "vram_bytes": 0, "gpu_bytes": []},
        "memory_max_bytes": 1012 * MIB + 3,
        "api_key_file": None,
        "stop_timeout": 30,
        "max_startup_time": 120,
        "action": "start",
        "reason": "new",
        **more,
    }


def host_plan(*servers: dict[str, Any], name: str = "gpu-1", **plan: Any) -> HostPlan:
    whole = {"servers": list(servers), "start": {"readiness_check_interval": 2}, **plan}
    return HostPlan(name, f"{name}.example.com", whole, ["/models"])


@pytest.fixture
def plan() -> HostPlan:
    gpu = {"weights_bytes": 300 * MIB, "ram_bytes": 200 * MIB, "vram_bytes": 900 * MIB, "gpu_bytes": [500, 400]}
    devices = {"env": {"MAGI_LLAMA_DEVICES": "CUDA0 (NVIDIA L4), CUDA1 (NVIDIA L4)"}}
    key = {"api_key_file": "/etc/magi/$keys"}
    return host_plan(
        server("qwen3-8b-q4_k_m", 8080, **key),
        server("qwen3-8b-q4_k_m-2", 8081, model="qwen3-8b-q4_k_m", **key),
        server("bge-m3", 8082, kind="embedding", tier=None, memory=gpu, **devices, **key),
        server("gone", 8083, action="stop"),
        server("bge-m3-surge", 8084, stands_in_for="bge-m3"),
    )


def written(folder: Path, form: str, *hosts: HostPlan, settings: Settings = SETTINGS) -> Path:
    """The files of a format in a folder."""
    workloads, _warnings = workloads_of(hosts, settings)
    for path, content in FORMATS[form].render(workloads, settings).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(to_text(path, content))
    return folder


def program(name: str) -> str:
    """A program that the Makefile fetches. Skips the test without it."""
    folder = Path(__file__).resolve().parents[3] / ".cache/debian/bin"
    found = shutil.which(name, path=f"{folder}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip(f"{name} is missing: make .cache/bin/.export")


def run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documents(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]
