# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway's files: HAProxy takes them, and the key is put in only when the container starts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from ansible_collections.magi.llama.plugins.module_utils._export import proxy
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import KEY_FILE, HostPlan, workloads_of
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import generate_key_file
from support.fake_server import FakeServer
from support.running_gateway import free_port

from .conftest import SETTINGS, host_plan, server

KEY = 'it\'s-100%-$HOME-"quoted"-\\back'


def placed(folder: Path, files: dict[str, str]) -> str:
    """The files as a container has them; returns the command that starts it, with folders of this test."""
    source, place, key = folder / "source", folder / "place", folder / "key"
    source.mkdir()
    place.mkdir()
    generate_key_file(str(key))
    comment, _generated = key.read_text().splitlines()
    key.write_text(f"{comment}\n\n  {KEY}\nanother-key\n")
    for name, text in files.items():
        (source / name).write_text(text)
    script = files[proxy.START].replace(proxy.SOURCE, str(source)).replace(proxy.PLACE, str(place))
    return script.replace(KEY_FILE, str(key)).replace("tries=60", "tries=0")


def started(folder: Path, files: dict[str, str]) -> Path:
    """What start.sh leaves for HAProxy, which only checks it."""
    script = placed(folder, files).replace("-W -db -f", "-c -f")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "place/config"


@pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is missing")
@pytest.mark.parametrize("resolves", [True, False])
def test_haproxy_takes_the_files_with_any_key(tmp_path: Path, plan: HostPlan, resolves: bool) -> None:
    workloads, _warnings = workloads_of([plan], SETTINGS)
    files = proxy.proxy_files(workloads, lambda one: one.name, resolves=resolves)
    assert not any(KEY in text for text in files.values())
    found = started(tmp_path, files)
    secrets = dict(line.split(" ", 1) for line in (found / "secrets.map").read_text().splitlines())
    assert secrets == {"qwen3-8b-q4_k_m": KEY, "bge-m3": KEY}
    digest = hashlib.sha256(KEY.encode()).hexdigest().upper()
    assert (found / "keys.map").read_text() == f"{digest} servers\n"
    assert (found / "secrets.map").stat().st_mode & 0o077 == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is missing")
def test_clients_with_the_key_reach_the_servers_and_no_others(tmp_path: Path) -> None:
    with FakeServer(model="a") as fake:
        planned = server("a", fake.port, api_key_file="/etc/keys")
        workloads, _warnings = workloads_of([host_plan(planned)], SETTINGS)
        files = proxy.proxy_files(workloads, lambda _one: "127.0.0.1", resolves=False)
        ports = {str(port): str(free_port()) for port in (proxy.PORT, proxy.METRICS_PORT)}
        for before, after in ports.items():
            files["haproxy.cfg"] = files["haproxy.cfg"].replace(f"0.0.0.0:{before}", f"127.0.0.1:{after}")
        process = subprocess.Popen(["sh", "-c", placed(tmp_path, files)], stderr=subprocess.DEVNULL)
        try:
            url, answer = f"http://127.0.0.1:{ports[str(proxy.PORT)]}/v1/completions", None
            for _try in range(100):
                with contextlib.suppress(httpx.TransportError):
                    headers = {"Authorization": f"Bearer {KEY}"}
                    answer = httpx.post(url, json={"model": "a"}, headers=headers, trust_env=False)
                    if answer.status_code == 200:
                        break
                time.sleep(0.1)
            assert answer is not None and answer.status_code == 200, answer and answer.text
            assert fake.seen[-1][1]["authorization"] == f"Bearer {KEY}"
            for wrong in ({}, {"Authorization": "Bearer another-key"}):
                assert httpx.post(url, json={"model": "a"}, headers=wrong, trust_env=False).status_code == 401
        finally:
            process.terminate()
            process.wait(30)


def test_servers_are_found_by_name_with_their_slots(plan: HostPlan) -> None:
    workloads, _warnings = workloads_of([plan], SETTINGS)
    lines = proxy.proxy_files(workloads, lambda one: f"x-{one.name}", resolves=True)["haproxy.cfg"].splitlines()
    found = [line.split()[1:5] for line in lines if line.startswith("  server ")]
    assert ["x-qwen3-8b-q4_k_m-2", "x-qwen3-8b-q4_k_m-2:8081", "maxconn", "2"] in found and len(found) == 3
    assert any(line.startswith("resolvers ") for line in lines)


def test_without_a_key_nothing_is_put_in() -> None:
    workloads, _warnings = workloads_of([host_plan(server("a", 8080))], SETTINGS)
    files = proxy.proxy_files(workloads, lambda one: one.name, resolves=False)
    assert "keys.needed" not in files and "LLAMA_API_KEY" not in files["haproxy.cfg"]
