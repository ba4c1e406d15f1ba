# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of containers: the planned ones, numbered as the container sees them, or a refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.module_utils._export.gpus import gpus_of
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import (
    DEFAULT_IMAGE,
    ExportError,
    workloads_of,
)

from .conftest import SETTINGS, host_plan, server, written

L4 = "NVIDIA L4"


def on_gpus(name: str, port: int, label: str, sizes: list[int], *words: str) -> dict[str, Any]:
    memory = {"weights_bytes": 5, "ram_bytes": 5, "vram_bytes": sum(sizes), "gpu_bytes": sizes}
    made = server(name, port, memory=memory, env={"MAGI_LLAMA_DEVICES": label})
    made["argv"] += words
    return made


@pytest.mark.parametrize(
    ("words", "sizes", "numbers", "wanted"),
    [
        ("--device CUDA1", [0, 5], (1,), "--device CUDA0"),
        ("--device CUDA3,CUDA1 --tensor-split 3,1", [0, 5, 0, 5], (1, 3), "--device CUDA1,CUDA0 --tensor-split 3,1"),
        ("--tensor-split 0,2/1", [0, 5, 5], (1, 2), "--tensor-split 2,1"),
        ("--split-mode none --main-gpu 1", [0, 5], (1,), "--split-mode none --main-gpu 0"),
        ("--device CUDA1,CUDA2 --main-gpu 1", [0, 5, 5], (1, 2), "--device CUDA0,CUDA1 --main-gpu 1"),
        ("--override-tensor a=CUDA1,b=CPU", [0, 5], (1,), "--override-tensor a=CUDA0,b=CPU"),
        ("--spec-draft-device CUDA2 --device CUDA1", [0, 5, 0], (1, 2), "--spec-draft-device CUDA1 --device CUDA0"),
        ("--device CUDA1 --n-gpu-layers 0", [0, 0], (), "--device none --n-gpu-layers 0"),
        ("--device RPC0,CUDA2 --tensor-split 3,1", [0, 0, 5], (2,), "--device RPC0,CUDA0 --tensor-split 3,1"),
        ("--device RPC0 --main-gpu 0", [], (), "--device RPC0 --main-gpu 0"),
        ("--device none", [0, 0], (), "--device none"),
    ],
)
def test_container_has_the_planned_gpus_by_its_own_numbers(
    words: str, sizes: list[int], numbers: tuple[int, ...], wanted: str
) -> None:
    label = ", ".join(f"CUDA{number} (NVIDIA L4 (24, GB))" for number, size in enumerate(sizes) if size)
    found = gpus_of(words.split(), {"MAGI_LLAMA_DEVICES": label}, sizes)
    assert (found.numbers, " ".join(found.argv), found.fault) == (numbers, wanted, "")


def test_compose_names_the_gpus_and_servers_may_share_one(tmp_path: Path) -> None:
    one, two = (on_gpus(name, 8080, f"CUDA1 ({L4})", [0, 5], "--device", "CUDA1") for name in ("a", "b"))
    services = yaml.safe_load((written(tmp_path, "compose", host_plan(one, two)) / "gpu-1/compose.yaml").read_text())
    for name in ("a", "b"):
        made = services["services"][name]
        assert made["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["1"]
        assert made["command"][-2:] == ["--device", "CUDA0"]


@pytest.mark.parametrize(
    ("form", "label", "image", "part"),
    [
        ("kubernetes", f"CUDA0 ({L4})", "x:1", "gpu-1: a and b share CUDA0"),
        ("compose", "ROCm0 (AMD Instinct MI210)", "x:1", r"gpu-1: a is on ROCm0 \(AMD Instinct MI210\)"),
        ("kubernetes", "0 (Radeon RX 7900)", "x:1", r"gpu-1: a is on 0 \(Radeon"),
        ("compose", "", "x:1", "that the plan does not name"),
        ("compose", f"CUDA0 ({L4})", DEFAULT_IMAGE, "gpu-1: a is planned on GPUs.*set export_image"),
    ],
)
def test_gpus_that_a_container_cannot_have_are_refused(form: str, label: str, image: str, part: str) -> None:
    settings = replace(SETTINGS, image=image)
    plan = host_plan(on_gpus("a", 8080, label, [5]), on_gpus("b", 8081, label, [5]))
    workloads, _warnings = workloads_of([plan], settings)
    with pytest.raises(ExportError, match=f"Nothing was written.*{part}"):
        FORMATS[form].render(workloads, settings)
    assert FORMATS["endpoints"].render(workloads, settings)


def test_equal_servers_on_other_gpus_of_other_hosts_are_replicas(tmp_path: Path) -> None:
    one = on_gpus("a", 8080, f"CUDA1 ({L4})", [0, 5], "--device", "CUDA1")
    two = on_gpus("a", 8080, f"CUDA0 ({L4})", [5, 0], "--device", "CUDA0")
    folder = written(tmp_path, "kubernetes", host_plan(one, name="x"), host_plan(two, name="y"))
    deployment = next(yaml.safe_load_all((folder / "base/llama-a.yaml").read_text()))
    assert deployment["spec"]["replicas"] == 2


def test_gpus_of_several_kinds_are_warned_of() -> None:
    mixed = on_gpus("a", 8080, f"CUDA0 (NVIDIA H100), CUDA1 ({L4})", [5, 5])
    workloads, _warnings = workloads_of([host_plan(mixed)], SETTINGS)
    (text,) = FORMATS["compose"].notes(workloads, SETTINGS)
    assert "nvidia-smi" in text
