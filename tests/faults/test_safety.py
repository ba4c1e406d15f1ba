# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is not ours is left alone, no path leads out of the models' folder, and keys stay where they are."""

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
from support.bed import BINARIES, Bed

Q3, Q4 = "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"
KEY = "sk-never-to-be-seen-5d1c"
Registry = dict[str, Any]


def plan_arguments(bed: Bed, **more: Any) -> dict[str, Any]:
    """What the role gives to server_plan, where the profile and the binary do not matter."""
    entry = {"model": None, "selector": {"tier": "Q4"}, "parameters": {}, "instances": 1, "key": "enabled_models[0]"}
    return {
        "registry_path": str(bed.registry),
        "profile": {
            "name": "pair",
            "source": "pair.yml",
            "enabled_models": [entry],
            "parameters": {},
            "start": {"max_startup_time": 60},
        },
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
        (first_model(id="../../etc/cron.d/x"), "is not an id"),
        (first_model(id="x\nExecStartPre=/bin/sh"), "is not an id"),
        (first_model(mmproj="/etc/passwd"), "is not among the companions"),
    ],
)
def test_a_hostile_registry_is_a_damaged_one(bed: Bed, tmp_path: Path, change: Callable[..., None], why: str) -> None:
    registry = json.loads(bed.registry.read_text())
    change(registry)
    hostile = tmp_path / "registry.json"
    hostile.write_text(json.dumps(registry))
    refused = bed.module("server_plan", **plan_arguments(bed, registry_path=str(hostile)))
    assert refused["failed"] and why in refused["msg"]
    # The next scan replaces it, and takes nothing from it.
    scanned = bed.module("gguf_registry", scan_paths=[str(bed.models)], registry_path=str(hostile))
    assert "is damaged" in scanned["warned"][0]
    assert json.loads(hostile.read_text())["models"] == json.loads(bed.registry.read_text())["models"]


def test_a_record_with_a_path_for_a_name_is_damaged(bed: Bed, tmp_path: Path) -> None:
    record = json.loads((bed.state / "servers.json").read_text())
    record["servers"][0]["name"] = "../../../etc/systemd/system/sshd"
    (tmp_path / "servers.json").write_text(json.dumps(record))
    answer = bed.module("server_state", state_dir=str(tmp_path), state="stopped")
    assert answer["failed"] and "is not a server name" in answer["msg"]


def test_a_link_out_of_the_folder_is_no_model(bed: Bed, tmp_path: Path) -> None:
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
def foreign(bed: Bed) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's llama-server on a port of the range, and of a similar name."""
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


def test_servers_that_are_not_ours_are_never_stopped(bed: Bed, foreign: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    answer: dict[str, Any] = {}
    # A port of the range that somebody else has is passed over.
    while not any(server["port"] == bed.port + 3 for server in answer.get("servers", [])):
        assert time.monotonic() < deadline, answer
        entry = {"model": None, "selector": {"id": "*"}, "parameters": {}, "instances": 1, "key": "enabled_models[0]"}
        arguments = plan_arguments(bed)
        arguments["profile"]["enabled_models"] = [entry]
        answer = bed.module("server_plan", **arguments)["ansible_facts"]["llama_plan"]
    actions = dict.fromkeys((Q3, Q4), "stop")
    bed.module("server_state", state_dir=str(bed.state), actions=actions)
    assert not bed.pids()
    assert foreign.poll() is None
    bed.module("server_state", state_dir=str(bed.state), state="started", supervisord_path=_supervisord())
    bed.wait_ready()


def _supervisord() -> str:
    return str(Path(sys.executable).parent / "supervisord")


def test_a_unit_that_is_not_ours_is_not_overwritten(tmp_path: Path) -> None:
    from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import (
        File,
        LaunchConfigError,
        Managed,
        refuse_foreign,
        stale_files,
    )

    managed = [Managed(str(tmp_path), "magi-llama-*.service", "MAGI_LLAMA_STATE=/var/lib/magi-llama")]
    theirs = tmp_path / "magi-llama-foreign.service"
    theirs.write_text("[Service]\nExecStart=/usr/bin/foreign\n")
    assert stale_files(managed, []) == []
    with pytest.raises(LaunchConfigError, match=r"magi-llama-foreign\.service is there and not ours"):
        refuse_foreign([File(str(theirs), b"")], managed)
    theirs.write_text("Environment=MAGI_LLAMA_STATE=/var/lib/magi-llama\n")
    refuse_foreign([File(str(theirs), b""), File(str(tmp_path / "magi-llama-new.service"), b"")], managed)


@pytest.fixture
def key_file(bed: Bed) -> Iterator[Path]:
    path = bed.root / "keys"
    yield path
    path.unlink(missing_ok=True)


def test_a_key_file_that_cannot_be_used_is_told_before_anything_is_touched(bed: Bed, key_file: Path) -> None:
    def look(**more: Any) -> dict[str, Any]:
        return bed.module(
            "host_facts",
            user="nobody",
            state_dir=str(bed.state),
            api_key_file=str(key_file),
            validate_launch=True,
            **more,
        )

    assert f"The API key file {key_file} cannot be read: No such file" in look()["msg"]
    key_file.write_text("\n\n")
    assert "holds no key" in look()["msg"]
    key_file.write_text(f"{KEY}\n")
    bed.root.chmod(0o755)
    key_file.chmod(0o600)
    if os.geteuid() == 0:
        assert "cannot be read by the servers' user nobody" in look()["msg"]
        assert "cannot be read by the servers' user nobody" not in str(look(_ansible_check_mode=True).get("msg"))
    key_file.chmod(0o644)
    first = look()["ansible_facts"]["llama_host"]["api_key_stamp"]
    key_file.write_text(f"{KEY}\n{KEY}-2\n")
    assert look()["ansible_facts"]["llama_host"]["api_key_stamp"] != first
    assert KEY not in str(look())


def test_a_key_is_seen_nowhere(bed: Bed, key_file: Path) -> None:
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
        # Without the key nobody gets a token.
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


def test_no_such_key_file_stops_a_run_before_it_touches_anything(bed: Bed, key_file: Path) -> None:
    pids = bed.pids()
    refused = bed.run("site", "-e", f"servers_api_key_file={key_file}", "-e", "profile=other", code=2)
    refused.expect(f"The API key file {key_file} cannot be read: No such file or directory")
    assert refused.changed == 0
    assert bed.pids() == pids
