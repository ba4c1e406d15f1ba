# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway's files: HAProxy takes them, and the key is put in only when the container starts."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._export import proxy
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import KEY_FILE, HostPlan, workloads_of

from .conftest import SETTINGS, host_plan, server

KEY = 'it\'s-100%-$HOME-"quoted"-\\back'


def started(folder: Path, files: dict[str, str]) -> Path:
    """What start.sh leaves for HAProxy, which is replaced by a check of its configuration."""
    source, place, key = folder / "source", folder / "place", folder / "key"
    source.mkdir()
    place.mkdir()
    key.write_text(f"\n  {KEY}\nanother-key\n")
    for name, text in files.items():
        (source / name).write_text(text)
    script = files[proxy.START].replace(proxy.SOURCE, str(source)).replace(proxy.PLACE, str(place))
    script = script.replace(KEY_FILE, str(key)).replace("-W -db -f", "-c -f").replace("tries=60", "tries=0")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "config"


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
