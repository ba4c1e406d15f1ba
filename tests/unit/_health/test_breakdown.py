# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory that a server has loaded, from its log, against the estimate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._health import breakdown, observations
from ansible_collections.magi.llama.plugins.module_utils._health.breakdown import (
    MIB,
    compared,
    deviation,
    deviation_warning,
    loaded_rows,
)
from ansible_collections.magi.llama.plugins.module_utils._health.outcome import Outcome

# Of build 11669, with a model of 1.5 MiB in Q4_K_M on a CPU.
LOG = [
    '{"type":"log","time":811666,"level":"info","msg":"srv    load_model: loading model \'/models/x.gguf\'\\n"}',
    '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[{"kind":"host","name":"Host","self":5,"model":0,'
    '"context":0,"compute":4},{"kind":"buffer_type","name":"CPU_REPACK","self":0,"model":0,"context":0,"compute":0}]}}',
    '{"type":"log","time":1283718,"level":"info","msg":"srv  llama_server: listening on http://127.0.0.1:18999\\n"}',
]


def event(*rows: dict[str, Any], unit: str = "MiB") -> str:
    return json.dumps({"type": "fit_memory_breakdown", "data": {"unit": unit, "rows": rows}}, separators=(",", ":"))


def row(model: int, context: int, compute: int, name: str = "CUDA0") -> dict[str, Any]:
    return {"kind": "device", "name": name, "self": 0, "model": model, "context": context, "compute": compute}


def estimate(**changes: Any) -> dict[str, Any]:
    parts = {"weights_bytes": 4000, "kv_bytes": 512, "recurrent_bytes": 0, "output_bytes": 1, "compute_bytes": 300}
    return {**{key: value * MIB for key, value in parts.items()}, "gpu_bytes": [5000 * MIB], **changes}


def test_rows_of_a_real_log_are_read() -> None:
    assert loaded_rows(LOG) == [
        {"kind": "host", "name": "Host", "model_bytes": 0, "context_bytes": 0, "compute_bytes": 4 * MIB},
        {"kind": "buffer_type", "name": "CPU_REPACK", "model_bytes": 0, "context_bytes": 0, "compute_bytes": 0},
    ]


def test_last_breakdown_counts() -> None:
    # The process before has printed one at its exit.
    assert compared(estimate(), [event(row(1, 1, 1)), event(row(4000, 512, 313))]) == {
        "planned_bytes": 4813 * MIB,
        "loaded_bytes": 4825 * MIB,
        "rows": loaded_rows([event(row(4000, 512, 313))]),
    }


def test_compute_buffers_are_counted_for_each_gpu() -> None:
    found = compared(estimate(gpu_bytes=[MIB, 0, MIB]), [event(row(2000, 256, 300), row(2000, 256, 300, "CUDA2"))])
    assert found is not None
    assert found["planned_bytes"] == 5113 * MIB
    assert deviation(found) is None


@pytest.mark.parametrize(
    "line",
    [
        "llama_memory_breakdown_print: | fit_memory_breakdown",
        event(unit="KiB"),
        event({"kind": "host", "name": "Host", "model": "1", "context": 0, "compute": 0}),
        event({"kind": "host", "name": "Host", "model": -1, "context": 0, "compute": 0}),
        '{"type":"fit_memory_breakdown","data":[]}',
        '{"type":"fit_memory_breakdown"',
        '{"type":"log","msg":"fit_memory_breakdown"}',
    ],
)
def test_log_without_a_usable_breakdown_gives_none(line: str) -> None:
    assert compared(estimate(), [line]) is None


@pytest.mark.parametrize(
    ("planned", "loaded", "share"),
    [
        (1000, 1100, None),
        (1000, 1110, 0.11),
        (1000, 880, -0.12),
        # The log counts in MiB.
        (5, 36, None),
        (5, 40, 7.0),
        (0, 100, None),
    ],
)
def test_deviation_above_a_tenth_is_told(planned: int, loaded: int, share: float | None) -> None:
    memory = {"planned_bytes": planned * MIB, "loaded_bytes": loaded * MIB, "rows": []}
    assert deviation(memory) == share
    assert (deviation_warning("a", memory) is None) == (share is None)


def test_warning_names_both_figures() -> None:
    memory = {"planned_bytes": 1024 * MIB, "loaded_bytes": 1280 * MIB, "rows": []}
    expected = "a: it has loaded 1.2 GiB, the plan estimated 1.0 GiB (+25%): "
    assert str(deviation_warning("a", memory)).startswith(expected)


def test_memory_is_kept_with_its_process(tmp_path: Any) -> None:
    state = str(tmp_path)
    found = compared(estimate(), LOG)
    assert found is not None
    ready = Outcome("a", 8080, "Q4", 5, "ready", True, True, 1.0)
    observations.update_observations(state, [ready], {"a": "r1"})
    observations.note_memory(state, {"a": found})
    assert observations.for_status(state) == {"a": {"pid": 5, "memory": found}}
    observations.update_observations(state, [ready], {"a": "r1"})
    assert observations.for_status(state)["a"]["memory"] == found
    # Another process.
    observations.update_observations(state, [Outcome("a", 8080, "Q4", 6, "ready", True, True, 1.0)], {"a": "r1"})
    assert observations.for_status(state) == {"a": {"pid": 6}}


def test_names_in_the_log_are_cleaned() -> None:
    assert loaded_rows([event(row(1, 1, 1, "CUDA\x1b[31m0" + "x" * 100))])[0]["name"].startswith("CUDA [31m0xx")
    assert len(loaded_rows([event(*[row(1, 1, 1)] * 100)])) == breakdown.MAX_ROWS
