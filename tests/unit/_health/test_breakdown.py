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
    gpu_part,
    loaded_rows,
    ram_part,
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


def row(model: int, context: int, compute: int, name: str = "CUDA0", kind: str = "device") -> dict[str, Any]:
    return {"kind": kind, "name": name, "self": 0, "model": model, "context": context, "compute": compute}


def estimate(**changes: Any) -> dict[str, Any]:
    """On the CPU."""
    parts = {"weights_bytes": 4000, "kv_bytes": 512, "recurrent_bytes": 0, "output_bytes": 1, "compute_bytes": 300}
    parts |= {"host_bytes": 101, "ram_bytes": 4912, "vram_bytes": 0}
    return {**{key: value * MIB for key, value in parts.items()}, "gpu_bytes": [], **changes}


def on_gpus(*gpus: int) -> dict[str, Any]:
    """Weights of 3500 MiB and the caches on GPUs, whose runtime takes 700 MiB on each."""
    used = sum(1 for size in gpus if size)
    sizes = {"vram_bytes": 3500 + 512 + used * 1000, "gpu_fixed_bytes": 1000, "inputs_bytes": 20}
    sizes |= {"host_bytes": 377, "ram_bytes": 500 + 377}
    return estimate(gpu_bytes=[size * MIB for size in gpus], **{key: size * MIB for key, size in sizes.items()})


def host(model: int, compute: int) -> dict[str, Any]:
    return row(model, 0, compute, "Host", "host")


def test_rows_of_a_real_log_are_read() -> None:
    assert loaded_rows(LOG) == [
        {"kind": "host", "name": "Host", "model_bytes": 0, "context_bytes": 0, "compute_bytes": 4 * MIB},
        {"kind": "buffer_type", "name": "CPU_REPACK", "model_bytes": 0, "context_bytes": 0, "compute_bytes": 0},
    ]


def test_last_breakdown_counts() -> None:
    # The process before has printed one at its exit.
    assert compared(estimate(), [event(host(1, 1)), event(host(4512, 313))]) == {
        "planned_bytes": 4813 * MIB,
        "loaded_bytes": 4825 * MIB,
        "rows": loaded_rows([event(host(4512, 313))]),
    }


@pytest.mark.parametrize(("gpus", "planned"), [((5012,), 4312), ((3012, 0, 3012), 4612)])
def test_ram_and_gpu_memory_are_compared_apart(gpus: tuple[int, ...], planned: int) -> None:
    """What is too much in one must not hide what is too little in the other."""
    repacked = row(100, 0, 0, "CPU_REPACK", "buffer_type")
    found = compared(on_gpus(*gpus), [event(row(planned - 812, 512, 300), host(400, 21), repacked)])
    assert found is not None
    assert gpu_part(found) == (planned * MIB, planned * MIB)
    assert ram_part(found) == (521 * MIB, 521 * MIB)
    assert deviation_warning("a", found) is None
    moved = compared(on_gpus(*gpus), [event(row(planned - 2812, 512, 300), host(2400, 21), repacked)])
    assert moved is not None and moved["loaded_bytes"] == found["loaded_bytes"] == found["planned_bytes"]
    says = "a: it has loaded 2.5 GiB of RAM, the plan estimated 521.0 MiB (+384%), and it has loaded "
    assert str(deviation_warning("a", moved)).startswith(says)
    assert f"of GPU memory, the plan estimated {planned / 1024:.1f} GiB (-4" in str(deviation_warning("a", moved))


def test_sums_that_an_earlier_version_noted_are_not_compared() -> None:
    rows = loaded_rows([event(row(4000, 512, 300), host(500, 0))])
    memory = {"planned_bytes": 9000 * MIB, "loaded_bytes": 5312 * MIB, "rows": rows}
    assert ram_part(memory) is gpu_part(memory) is deviation_warning("a", memory) is None


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
    assert deviation(planned * MIB, loaded * MIB) == share
    assert (deviation_warning("a", memory) is None) == (share is None)


def test_warning_names_both_figures() -> None:
    memory = {"planned_bytes": 1024 * MIB, "loaded_bytes": 1280 * MIB, "rows": []}
    expected = "a: it has loaded 1.2 GiB of RAM, the plan estimated 1.0 GiB (+25%): "
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
