# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready servers that are not on their GPU. The figures of nvidia-smi were recorded on an NVIDIA H100."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.gpu_processes import held_bytes
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._health.on_cpu import with_servers_on_cpu
from ansible_collections.magi.llama.plugins.module_utils._health.outcome import Outcome
from ansible_collections.magi.llama.plugins.module_utils._health.status import status_json
from ansible_collections.magi.llama.plugins.module_utils._output.report import status_lines
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceStatus

MIB = 1024**2
READY = Outcome("a", 8080, "Q4", 100, "ready", True, True)


def judged(held: dict[int, int] | None, planned_mib: int = 5395, **server: Any) -> Outcome:
    servers = [{"name": "a", "memory": {"vram_bytes": planned_mib * MIB}, **server}]
    return with_servers_on_cpu([READY], servers, held, {100: (101,)})[0]


@pytest.mark.parametrize("held", [{100: 5388 * MIB}, {101: 5388 * MIB}, {100: 4400 * MIB}])
def test_server_on_its_gpu_is_ready(held: dict[int, int]) -> None:
    assert judged(held) == READY


@pytest.mark.parametrize("held", [{}, {100: 754 * MIB}, {7: 5388 * MIB}])
def test_server_that_holds_less_than_planned_runs_on_the_cpu(held: dict[int, int]) -> None:
    found = judged(held)
    assert (found.state, found.is_ready, found.is_settled) == ("on_cpu", False, True)
    assert "runs on the CPU: it holds " in str(found.detail)
    assert "planned are 5.3 GiB" in str(found.detail)
    assert "servers_require_gpu: false" in str(found.fix)


def test_server_is_not_judged_where_it_need_not_be_on_a_gpu() -> None:
    assert judged({}, require_gpu="false") == READY
    assert judged({}, planned_mib=0) == READY


def test_server_with_uncounted_weights_in_ram_has_to_use_its_gpu_at_all() -> None:
    memory = {"vram_bytes": 5395 * MIB, "estimates": ["total_bytes", "vram_bytes"]}
    assert judged({100: 754 * MIB}, memory=memory) == READY
    assert judged({}, memory=memory).state == "on_cpu"


def test_unknown_use_of_a_gpu_is_a_failure_only_where_it_is_required() -> None:
    assert judged(None) == READY
    assert judged(None, require_gpu="true").state == "on_cpu"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", {}),
        ("GPU-1d2c, 100, 5388\nGPU-2, 100, 12\nGPU-1d2c, 7, 3\n", {100: 5400 * MIB, 7: 3 * MIB}),
        ("GPU-1d2c, 100, [N/A]\n", None),
    ],
)
def test_what_processes_hold(text: str | None, expected: dict | None) -> None:
    assert held_bytes(lambda _command: text) == expected


def test_status_shows_gpu_memory_held_and_planned() -> None:
    servers = [
        {
            "name": name,
            "model_id": name,
            "port": 8080,
            "memory": {"vram_bytes": size},
            "env": {"MAGI_LLAMA_DEVICES": "CUDA0 (H100)"} if size else {},
        }
        for name, size in (("a", 5395 * MIB), ("b", 0))
    ]
    statuses = {name: ServiceStatus(name, "running", pid=100) for name in ("a", "b")}
    process = Process(100, 1, "a", (), {}, 0, 0.0, 9.0, 0, children=(101,))
    shown = status_json(servers, statuses, {}, {"a": process}, {}, held={101: 5388 * MIB, 7: MIB})
    on_gpu, on_cpu = shown["servers"]
    assert (on_gpu["vram_bytes"], on_gpu["planned_vram_bytes"]) == (5388 * MIB, 5395 * MIB)
    assert on_gpu["device"] == "CUDA0 (H100)"
    assert "planned_vram_bytes" not in on_cpu
    lines = status_lines(shown)
    assert lines[1].endswith("GPU           GPU MEMORY  PLANNED ON GPU  LOADED ON GPU")
    assert lines[2].endswith("CUDA0 (H100)  5.3 GiB     5.3 GiB         -")
    unknown = status_json(servers, statuses, {}, {"a": process}, {})
    assert unknown["servers"][0]["vram_bytes"] is None
