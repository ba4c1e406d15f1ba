# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded output of the vendors' tools, of working and of broken installations."""

from __future__ import annotations

import json

import pytest
from ansible_collections.magi.llama.plugins.module_utils._plan.gpu import (
    AMD_COMMAND,
    NVIDIA_COMMAND,
    ROCM_COMMAND,
    Gpu,
    parse_amd_smi,
    parse_nvidia_smi,
    parse_rocm_smi,
    read_gpus,
    vram_per_gpu,
)

MIB = 1024 * 1024
GIB = 1024 * MIB

NVIDIA = """\
0, GPU-5f1f7d0e-2b1c-4c55-8c2e-7f6c8c1f9d10, NVIDIA GeForce RTX 3090, 24576, 24244
1, GPU-0b7c4d5e-92e4-4a51-a6bb-9d0a1e3b7c21, NVIDIA A100-SXM4-80GB, 81920, 3072
"""
ROCM = json.dumps(
    {
        "card0": {
            "VRAM Total Memory (B)": "21458059264",
            "VRAM Total Used Memory (B)": "27856896",
            "Card Series": "Radeon RX 7900 XT",
            "Card Model": "0x744c",
            "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]",
            "GFX Version": "gfx1100",
        }
    }
)
ROCM_WITH_GRAPHICS = json.dumps(
    {
        "card1": {
            "VRAM Total Memory (B)": "67108864",
            "VRAM Total Used Memory (B)": "26079232",
            "Card Series": "Raphael",
        },
        "card0": {
            "VRAM Total Memory (B)": "17163091968",
            "VRAM Total Used Memory (B)": "692142080",
            "Card Series": "N/A",
        },
        "system": {"Driver version": "6.8.5"},
    }
)
AMD_MEMORY = {
    "total_vram": {"value": 24560, "unit": "MB"},
    "used_vram": {"value": 26, "unit": "MB"},
    "free_vram": {"value": 24534, "unit": "MB"},
}
AMD_OLD = json.dumps([{"gpu": 0, "mem_usage": AMD_MEMORY}])
AMD_NEW = json.dumps({"gpu_data": [{"gpu": 0, "mem_usage": AMD_MEMORY}]})
AMD_GPU = Gpu(0, "AMD GPU", 24560 * MIB, 24534 * MIB, "amd")
RADEON = Gpu(0, "Radeon RX 7900 XT", 21458059264, 21458059264 - 27856896, "amd")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            NVIDIA,
            [
                Gpu(0, "NVIDIA GeForce RTX 3090", 24576 * MIB, 24244 * MIB, "nvidia"),
                Gpu(1, "NVIDIA A100-SXM4-80GB", 80 * GIB, 3 * GIB, "nvidia"),
            ],
        ),
        (
            "0, GPU-1, Quadro, the large one, 8192, 8000\r\n",
            [Gpu(0, "Quadro, the large one", 8 * GIB, 8000 * MIB, "nvidia")],
        ),
        # Memory that the GPU shares with the host.
        ("0, GPU-1, NVIDIA GB10, [N/A], [N/A]\n", []),
        ("0, GPU-1, Orin (nvgpu), [Not Supported], [Not Supported]\n", []),
        ("No devices were found\n", []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", []),
        ("", []),
    ],
)
def test_nvidia_smi_output_is_parsed(text: str, expected: list[Gpu]) -> None:
    assert parse_nvidia_smi(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROCM, [RADEON]),
        ("WARNING: AMD GPU device(s) is/are in a low-power state.\n\n" + ROCM + "\n", [RADEON]),
        (
            ROCM_WITH_GRAPHICS,
            [
                Gpu(0, "AMD GPU", 17163091968, 17163091968 - 692142080, "amd"),
                Gpu(1, "Raphael", 67108864, 67108864 - 26079232, "amd"),
            ],
        ),
        ('{"card0": {"VRAM Total Memory (B)": "N/A", "VRAM Total Used Memory (B)": "N/A"}}', []),
        ("ERROR:root:Driver not initialized (amdgpu not found in modules)\n", []),
        ("[", []),
        ("[1, 2]", []),
        ('{"card0": 3}', []),
        ("", []),
    ],
)
def test_rocm_smi_output_is_parsed(text: str, expected: list[Gpu]) -> None:
    assert parse_rocm_smi(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AMD_OLD, [AMD_GPU]),
        (AMD_NEW, [AMD_GPU]),
        ('[{"gpu": 0, "mem_usage": "N/A"}]', []),
        ('[{"gpu": 0, "mem_usage": {"total_vram": {"value": "N/A", "unit": "MB"}, "free_vram": 3}}]', []),
        ('{"gpu_data": 3}', []),
        ("ERROR: Unable to detect any GPU devices", []),
    ],
)
def test_amd_smi_output_is_parsed(text: str, expected: list[Gpu]) -> None:
    assert parse_amd_smi(text) == expected


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({}, []),
        (
            {"nvidia-smi": NVIDIA, "rocm-smi": ROCM},
            ["NVIDIA GeForce RTX 3090", "NVIDIA A100-SXM4-80GB", "Radeon RX 7900 XT"],
        ),
        ({"amd-smi": AMD_NEW}, ["AMD GPU"]),
        # An integrated GPU has no memory for models.
        ({"rocm-smi": ROCM_WITH_GRAPHICS, "amd-smi": AMD_NEW}, ["AMD GPU"]),
    ],
)
def test_gpus_of_all_tools_are_combined(outputs: dict[str, str], expected: list[str]) -> None:
    asked = []

    def run(command: list[str]) -> str | None:
        asked.append(command)
        return outputs.get(command[0])

    assert [gpu.name for gpu in read_gpus(run)] == expected
    assert all(command in (NVIDIA_COMMAND, ROCM_COMMAND, AMD_COMMAND) for command in asked)


GIB = 1024**3
TWO = [Gpu(0, "a", 24 * GIB, 24 * GIB, "nvidia"), Gpu(1, "b", 8 * GIB, 8 * GIB, "nvidia")]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [6, 2]),
        ({"tensor_split": "1,1"}, [4, 4]),
        ({"tensor_split": "3/1"}, [6, 2]),
        ({"tensor_split": "0,1"}, [0, 8]),
        ({"split_mode": "none"}, [8, 0]),
        ({"split_mode": "none", "main_gpu": 1}, [0, 8]),
        ({"device": "CUDA1"}, [0, 8]),
        ({"device": "CUDA0,CUDA1"}, [6, 2]),
    ],
)
def test_server_vram_is_split_as_by_llama_server(flags: dict, expected: list[int]) -> None:
    assert vram_per_gpu(8 * GIB, 0, flags, TWO) == [size * GIB for size in expected]


def test_fixed_vram_counts_on_every_gpu() -> None:
    assert vram_per_gpu(10 * GIB, GIB, {}, TWO) == [7 * GIB, 3 * GIB]
    assert vram_per_gpu(8 * GIB, GIB, {}, []) == []
    assert vram_per_gpu(0, 0, {}, TWO) == [0, 0]
