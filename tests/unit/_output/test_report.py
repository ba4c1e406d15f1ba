# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The human-readable report of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.text import format_bytes
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import Kept, short_content
from ansible_collections.magi.llama.plugins.module_utils._models.scan import scan
from ansible_collections.magi.llama.plugins.module_utils._output.report import (
    discovery_lines,
    registry_lines,
    runtime_lines,
    status_lines,
    summary_lines,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.memory import estimate
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import validate
from support import gguf_files as make


@pytest.fixture
def registry(tmp_path: Path) -> dict[str, Any]:
    make.write_tiny_llama(tmp_path / "tiny-F16.gguf")
    make.small_model(tmp_path / "other/small-Q4_K_M.gguf")
    values = {"general.architecture": "clip", "clip.vision.projection_dim": 256}
    data = make.model_bytes(values)
    (tmp_path / "mmproj.gguf").write_bytes(data + bytes(50 << 20))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    return scan([str(tmp_path)], Kept()).content


def profile(*entries: Any, **more: Any) -> dict[str, Any]:
    return validate("test", "profiles/test.yml", {"enabled_models": list(entries or ["tiny-f16"]), **more})


def test_runtime_lines_name_method_and_rejected_methods() -> None:
    runtime = {
        "path": "/usr/bin/llama-server",
        "installed": True,
        "version": "0.7.0",
        "build": 11669,
        "source": "package",
    }
    tried = [
        {"method": "existing", "result": "there is none at /x/y. Set z."},
        {"method": "package", "result": "it is installed"},
    ]
    assert runtime_lines(runtime, tried) == [
        "llama-server 0.7.0 (build 11669), /usr/bin/llama-server, method package",
        "      method existing: not used, there is none at /x/y",
    ]
    absent = {**runtime, "installed": False, "version": None, "build": None}
    assert runtime_lines(absent, [])[0].startswith("llama-server not installed yet, /usr/bin/llama-server")


def test_discovery_lines(registry: dict[str, Any], tmp_path: Path) -> None:
    changes = {"added": ["a", "b"], "removed": [], "replaced": ["c"]}
    lines = discovery_lines(registry, changes)
    assert lines[0] == f"[1/5] discovery       2 models in {tmp_path} (1 companion files, 1 rejected)"
    assert lines[1:3] == ["      added    a, b", "      replaced c"]
    assert lines[3].startswith(f"      rejected {tmp_path}/broken.gguf: ")
    assert len(lines) == 4
    assert len(discovery_lines({**registry, "companions": [], "rejected": []}, {})) == 1


def test_status_names_stuck_stops() -> None:
    server = {"name": "a", "port": 8080, "pid": None, "tier": "Q4", "state": "stopped", "uptime_seconds": 0}
    server |= {"rss_bytes": 0, "restarts": 0, "stuck_stop": {"signal": "second SIGTERM", "seconds": 10.2}}
    status = {"ready_servers": 0, "total_servers": 2, "servers": [server, {**server, "name": "b"}]}
    status["servers"][1].pop("stuck_stop")
    assert status_lines(status)[-1] == "a: stuck stop: it ended by second SIGTERM after 10 s"


def test_status_shows_memory_as_planned_and_as_loaded() -> None:
    server = {"name": "a", "port": 8080, "pid": 5, "tier": "Q4", "state": "ready", "uptime_seconds": 9, "restarts": 0}
    server |= {"rss_bytes": 2**30, "memory": {"planned_bytes": 2**31, "loaded_bytes": 5 * 2**29, "rows": []}}
    status = {"ready_servers": 1, "total_servers": 1, "servers": [server]}
    assert "1.0 GiB  2.0 GiB  2.5 GiB (+25%) " in status_lines(status)[2]


def test_status_shows_ram_and_gpu_memory_apart() -> None:
    server = {"name": "a", "port": 8080, "pid": 5, "tier": "Q4", "state": "ready", "uptime_seconds": 9, "restarts": 0}
    server |= {"rss_bytes": 2**30, "threads": 2, "device": "H100", "vram_bytes": 7 * 2**30, "planned_vram_bytes": 2**33}
    memory = {"planned_bytes": 8 * 2**30, "loaded_bytes": 9 * 2**30, "rows": []}
    server["memory"] = {**memory, "planned_gpu_bytes": 7 * 2**30, "loaded_gpu_bytes": 6 * 2**30}
    header, line = status_lines({"ready_servers": 1, "total_servers": 1, "servers": [server]})[1:]
    shown = dict(zip(re.split(r"  +", header), re.split(r"  +", line)))
    assert (shown["THREADS"], shown["MEMORY"], shown["PLANNED"], shown["LOADED"]) == (
        *("2", "1.0 GiB", "1.0 GiB"),
        "3.0 GiB (+200%)",
    )
    assert [shown[key] for key in ("GPU MEMORY", "PLANNED ON GPU", "LOADED ON GPU")] == [
        "7.0 GiB",
        "8.0 GiB",
        "6.0 GiB (-14%)",
    ]


def test_status_shows_the_speed_that_a_probe_has_seen() -> None:
    server = {"name": "a", "port": 8080, "pid": 5, "tier": "Q4", "state": "ready", "uptime_seconds": 9, "restarts": 0}
    server |= {"rss_bytes": 0, "tokens_per_second": 216.4}
    status = {"ready_servers": 1, "total_servers": 2, "servers": [server, {**server, "tokens_per_second": None}]}
    lines = status_lines(status)
    assert [line.split()[-1] for line in lines[1:]] == ["TOKENS/S", "216.4", "-"]
    assert "TOKENS/S" not in status_lines({**status, "servers": status["servers"][1:]})[1]


def test_model_table(registry: dict[str, Any]) -> None:
    entry = {"model": "tiny-f16", "parameters": {"ctx_size": 512, "mmproj": None}}
    lines = registry_lines(registry, profile(entry, parameters={"ctx_size": 1024}))
    assert lines[0].split() == ["ID", "TIER", "SIZE", "PARAMETERS", "CONTEXT", "MEMORY", "KIND"]
    rows = {line.split()[0]: line.split() for line in lines[1:3]}
    assert rows["tiny-f16"][1:7] == ["F16", "2.5", "MiB", "1.3M", "2048", *memory(registry, {"ctx_size": 512})[:1]]
    assert rows["small-q4_k_m"][1] == "Q4"
    # Mismatches are reported below the table.
    assert lines[3].startswith("small-q4_k_m: tier: ")


def memory(registry: dict[str, Any], settings: dict[str, Any], companion: int = 0) -> list[str]:
    shape = next(model["memory"] for model in registry["models"] if model["id"] == "tiny-f16")
    return format_bytes(estimate(shape, settings, companion_bytes=companion)["total_bytes"]).split()


def test_memory_includes_the_servers_projector(registry: dict[str, Any]) -> None:
    path, size = registry["companions"][0]["path"], registry["companions"][0]["size_bytes"]
    for parameters, companion in (({}, size), ({"mmproj": path}, size), ({"mmproj": None}, 0), ({"mmproj": "/x"}, 0)):
        row = next(line for line in registry_lines(registry, profile(parameters=parameters)) if "tiny-f16" in line)
        assert " ".join(memory(registry, {}, companion)) in row


def test_memory_with_invalid_parameter_reports_it(registry: dict[str, Any]) -> None:
    lines = registry_lines(registry, profile(parameters={"ctx_size": "8k"}))
    assert [line.split()[-2] for line in lines[1:3]] == ["-", "-"]
    assert lines[-1] == "profile \"test\" (profiles/test.yml): ctx_size is '8k': it must be a whole number."


def test_memory_with_short_registry_is_missing(registry: dict[str, Any]) -> None:
    lines = registry_lines(short_content(registry), profile())
    assert [line.split()[-2] for line in lines[1:3]] == ["-", "-"]


def test_new_models_are_shortened_to_the_first(registry: dict[str, Any]) -> None:
    ids = [f"model-{number:02}" for number in range(23)]
    lines = discovery_lines(registry, {"added": ids, "removed": ids[:20]})
    assert lines[1] == f"      added    {', '.join(ids[:20])} and 3 more"
    assert lines[2] == f"      removed  {', '.join(ids[:20])}"


def test_summary_counts_missing_servers_and_restarts():
    server = {"name": "a", "port": 8080, "pid": 1, "state": "ready", "seconds_to_ready": 1.0, "restarts": 3}
    plan = {"profile": "p", "servers": [{"name": "a", "action": "keep"}], "lost": {"b": "/m/b.gguf is gone"}}
    lines = summary_lines(None, plan, {"ready": 1, "servers": [server]}, None)
    assert lines[0].endswith("1 of 2 ready")
    assert lines[1].split()[-1] == "RESTARTS" and lines[2].split()[-1] == "3"
    assert lines[3] == "missing: b: /m/b.gguf is gone"


def test_status_of_a_process_that_the_user_may_not_see_has_dashes():
    server = {
        **{"name": "a", "port": 8080, "pid": 12, "tier": "Q4", "state": "ready", "restarts": 0},
        **{"uptime_seconds": None, "rss_bytes": None},
    }
    line = status_lines({"ready_servers": 1, "total_servers": 1, "servers": [server]})[2]
    assert line.split()[5:8] == ["ready", "-", "-"]
