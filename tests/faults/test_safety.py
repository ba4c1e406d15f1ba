# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unmanaged servers and files are not touched, paths cannot leave the models' folder, and API keys do not leak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import validate
from support.bed import BINARIES, Bed

Q3, Q4 = "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"
KEY = "sk-never-to-be-seen-5d1c"
Registry = dict[str, Any]


def plan_arguments(bed: Bed, **more: Any) -> dict[str, Any]:
    """The arguments of server_plan as the role passes them, with a placeholder profile and binary."""
    return {
        "registry_path": str(bed.registry),
        "profile": validate("pair", "pair.yml", {"enabled_models": [{"tier": "Q4"}]}),
        "runtime": {"path": "/usr/bin/llama-server", "identity": "x", "build": None, "flags": {}},
        "state_dir": str(bed.state),
        "service_manager": "supervisor",
        "port_range_start": bed.port,
        "port_range_end": bed.port + 5,
        **more,
    }


def first_model(**changes: Any) -> Callable[[Registry], None]:
    return lambda registry: registry["models"][0].update(changes)


def move_all(registry: Registry) -> None:
    folder = registry["scan_paths"][0]
    path = f"{folder}/../../../etc/passwd"
    registry["models"][0].update(path=path, files=[path])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (first_model(path="/etc/passwd"), "not its first file"),
        (first_model(path="/etc/passwd", files=["/etc/passwd"]), "/etc/passwd is not in the scanned folders"),
        (move_all, "/etc/passwd is not in the scanned folders"),
        (first_model(id="../../etc/cron.d/x"), "id is '"),
        (first_model(id="x\nExecStartPre=/bin/sh"), "id is '"),
        (first_model(mmproj="/etc/passwd"), "is not among the companions"),
    ],
)
def test_registry_hostile_is_damaged(bed: Bed, tmp_path: Path, change: Callable[..., None], why: str) -> None:
    registry = json.loads(bed.registry.read_text())
    change(registry)
    hostile = tmp_path / "registry.json"
    hostile.write_text(json.dumps(registry))
    refused = bed.module("server_plan", **plan_arguments(bed, registry_path=str(hostile)))
    assert refused["failed"] and why in refused["msg"]
    # The next scan replaces it and keeps nothing from it.
    scanned = bed.module("gguf_registry", scan_paths=[str(bed.models)], registry_path=str(hostile))
    assert "is damaged" in scanned["warned"][0]
    assert json.loads(hostile.read_text())["models"] == json.loads(bed.registry.read_text())["models"]


def test_record_with_path_as_name_is_damaged(bed: Bed, tmp_path: Path) -> None:
    content = json.loads((bed.state / "deployment.json").read_text())
    content["deployed"]["servers"][0]["name"] = "../../../etc/systemd/system/sshd"
    (tmp_path / "deployment.json").write_text(json.dumps(content))
    answer = bed.module("server_state", state_dir=str(tmp_path), state="stopped")
    assert answer["failed"] and "servers[0].name is '../" in answer["msg"]


def test_link_out_of_folder_is_rejected(bed: Bed, tmp_path: Path) -> None:
    outside = tmp_path / "outside.gguf"
    outside.write_bytes((bed.models / "tiny-llama-Q2_K.gguf").read_bytes())
    link = bed.models / "link.gguf"
    link.symlink_to(outside)
    try:
        registry = tmp_path / "registry.json"
        answer = bed.module("gguf_registry", scan_paths=[str(bed.models)], registry_path=str(registry))
    finally:
        link.unlink()
    [rejected] = answer["ansible_facts"]["llama_registry"]["rejected"]
    assert rejected["path"] == str(link) and "outside the scanned folders" in rejected["reason"]


@pytest.fixture
def unmanaged_server(bed: Bed) -> Iterator[subprocess.Popen[bytes]]:
    """An unmanaged llama-server with a similar name on a port of the range."""
    model = bed.models / "tiny-llama-Q2_K.gguf"
    process = subprocess.Popen(
        [
            BINARIES / "llama-server",
            "--model",
            model,
            "--alias",
            Q3,
            "--port",
            str(bed.port + 2),
            "--host",
            "127.0.0.1",
        ],
        env={"PATH": os.environ["PATH"], "MAGI_LLAMA_STATE": f"{bed.state}-of-another", "MAGI_LLAMA_SERVER": Q3},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.kill()
    process.wait()


def test_unmanaged_servers_are_never_stopped(bed: Bed, unmanaged_server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    answer: dict[str, Any] = {}
    # A port of the range that another process holds is skipped.
    while not any(server["port"] == bed.port + 3 for server in answer.get("servers", [])):
        assert time.monotonic() < deadline, answer
        everything = validate("all", "all.yml", {"enabled_models": [{"id": "*"}]})
        answer = bed.module("server_plan", **plan_arguments(bed, profile=everything))["ansible_facts"]["llama_plan"]
    actions = dict.fromkeys((Q3, Q4), "stop")
    bed.module("server_state", state_dir=str(bed.state), actions=actions)
    assert not bed.pids()
    assert unmanaged_server.poll() is None
    bed.module("server_state", state_dir=str(bed.state), state="started", supervisord_path=_supervisord())
    bed.wait_ready()


def _supervisord() -> str:
    return str(Path(sys.executable).parent / "supervisord")


def test_unmanaged_unit_is_not_overwritten(tmp_path: Path) -> None:
    from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import (
        File,
        LaunchConfigError,
        Managed,
        refuse_foreign,
        stale_files,
    )

    managed = [Managed(str(tmp_path), "magi-llama-*.service", "MAGI_LLAMA_STATE=/var/lib/magi-llama")]
    unit = tmp_path / "magi-llama-foreign.service"
    unit.write_text("[Service]\nExecStart=/usr/bin/foreign\n")
    assert stale_files(managed, []) == []
    with pytest.raises(LaunchConfigError, match=r"magi-llama-foreign\.service already exists and is not managed"):
        refuse_foreign([File(str(unit), b"")], managed)
    unit.write_text("Environment=MAGI_LLAMA_STATE=/var/lib/magi-llama\n")
    refuse_foreign([File(str(unit), b""), File(str(tmp_path / "magi-llama-new.service"), b"")], managed)


@pytest.fixture
def key_file(bed: Bed) -> Iterator[Path]:
    path = bed.root / "keys"
    yield path
    path.unlink(missing_ok=True)


def test_key_file_unusable_is_reported_before_changes(bed: Bed, key_file: Path) -> None:
    def facts(**more: Any) -> dict[str, Any]:
        answer = bed.module(
            "begin_run",
            user="nobody",  # codespell:ignore nobody
            state_dir=str(bed.state),
            api_key_file=str(key_file),
            validate_launch=True,
            _filled_in={"run": run},
            **more,
        )
        bed.module("run_lock", state_dir=str(bed.state), state="released", _filled_in={"run": run})
        return answer

    run = {"id": "mine", "controller": "here", "user": "me", "pid": 1, "playbook": "site.yml"}
    assert f"The API key file {key_file} cannot be read: No such file" in facts()["msg"]
    key_file.write_text("\n\n")
    assert "contains no key" in facts()["msg"]
    key_file.write_text(f"{KEY}\n")
    bed.root.chmod(0o755)
    key_file.chmod(0o600)
    if os.geteuid() == 0:
        unreadable = "cannot be read by the servers' user nobody"  # codespell:ignore nobody
        assert unreadable in facts()["msg"]
        assert unreadable not in str(facts(_ansible_check_mode=True).get("msg"))
    key_file.chmod(0o644)
    first = facts()["ansible_facts"]["llama_host"]["api_key_stamp"]
    key_file.write_text(f"{KEY}\n{KEY}-2\n")
    assert facts()["ansible_facts"]["llama_host"]["api_key_stamp"] != first
    assert KEY not in str(facts())


def test_key_does_not_leak(bed: Bed, key_file: Path) -> None:
    key_file.write_text(f"{KEY}\n")
    with_key = ["-e", f"servers_api_key_file={key_file}"]
    outputs = [bed.run("site", "-vvv", "--diff", *with_key), bed.run("verify", "-vvv")]
    assert "Invalid API Key" not in outputs[1].output
    bed.wait_ready()
    try:
        for outcome in outputs:
            assert KEY not in outcome.output
        for process in bed.processes().values():
            assert "--api-key-file" in process.argv
            for part in ("cmdline", "environ"):
                assert KEY.encode() not in Path(f"/proc/{process.pid}/{part}").read_bytes()
        kept = [path for path in bed.root.rglob("*") if path.is_file() and path != key_file]
        assert not [path for path in kept if KEY.encode() in path.read_bytes()]
        # Without the key a server does not answer.
        port = next(iter(bed.status().values()))["port"]
        asked = subprocess.run(
            ["curl", "-s", "-d", '{"prompt": "a", "n_predict": 1}', f"http://127.0.0.1:{port}/completion"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Invalid API Key" in asked.stdout
    finally:
        bed.run("site")


def test_key_file_missing_stops_run_before_changes(bed: Bed, key_file: Path) -> None:
    pids = bed.pids()
    refused = bed.run("site", "-e", f"servers_api_key_file={key_file}", "-e", "profile=other", code=2)
    refused.expect(f"The API key file {key_file} cannot be read: No such file or directory")
    assert refused.changed == 0
    assert bed.pids() == pids
