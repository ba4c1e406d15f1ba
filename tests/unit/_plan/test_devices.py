# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs as llama-server lists them. fake_devices is a fake llama-server; the texts were recorded on an NVIDIA H100."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed
from ansible_collections.magi.llama.plugins.module_utils._core.gpu_processes import NVIDIA_APPS_COMMAND, parse_apps
from ansible_collections.magi.llama.plugins.module_utils._plan.devices import find_gpus, parse_devices
from ansible_collections.magi.llama.plugins.module_utils._plan.gpu import NVIDIA_COMMAND, Gpu

MIB = 1024 * 1024
CUDA = "Available devices:\n  CUDA0: NVIDIA H100 80GB HBM3 (81079 MiB, 80552 MiB free)\n"
VULKAN = "  Vulkan0: NVIDIA H100 80GB HBM3 (81559 MiB, 81062 MiB free)\n"
CARD = "0, GPU-1d2c, NVIDIA H100 80GB HBM3, 81559, 81062\n"
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 81079 * MIB, 80552 * MIB, "nvidia", "CUDA0")
RUNTIME = {"path": "/opt/llama-server", "flags": {"list_devices": {}}}


def fake_devices(text: str, code: int = 0) -> Callable[[Sequence[str]], Completed]:
    """A fake of llama-server --list-devices."""

    def ask(argv: Sequence[str]) -> Completed:
        assert list(argv) == ["/opt/llama-server", "--list-devices"]
        return Completed(code, text, "")

    return ask


def tools(card: str | None = None, apps: str | None = None) -> Callable[[list[str]], str | None]:
    answers = {tuple(NVIDIA_COMMAND): card, tuple(NVIDIA_APPS_COMMAND): apps}
    return lambda command: answers.get(tuple(command))


def found(
    listed: str, card: str | None = None, apps: str | None = None, own: dict | None = None, planned: dict | None = None
) -> tuple[list[Gpu], list[str]]:
    return find_gpus(RUNTIME, fake_devices(listed), tools(card, apps), own or {}, planned or {}, lambda _pid: "python3")


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("Available devices:\n  (none)\n", []),
        (CUDA, [H100]),
        # Two backends that see one card: llama-server takes the first.
        (CUDA + VULKAN, [H100]),
        (VULKAN, [Gpu(0, H100.name, 81559 * MIB, 81062 * MIB, "nvidia", "Vulkan0")]),
        (
            "  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24000 MiB free)\n",
            [Gpu(0, "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24560 * MIB, 24000 * MIB, "vulkan", "Vulkan0")],
        ),
        ("  CUDA0: a\x1b[31mb (9 MiB, 8 MiB free)\n", [Gpu(0, "a [31mb", 9 * MIB, 8 * MIB, "nvidia", "CUDA0")]),
    ],
)
def test_list_devices_output_is_parsed(text: str, gpus: list[Gpu]) -> None:
    assert parse_devices(text) == gpus


def test_gpu_is_seen_without_any_vendors_tool() -> None:
    assert found(CUDA) == ([H100], [])
    assert found("  SYCL0: Intel(R) Arc(TM) B580 Graphics (11605 MiB, 11000 MiB free)\n")[0][0].device == "SYCL0"


@pytest.mark.parametrize("name", ["Intel(R) UHD Graphics 770 (ADL-S GT1)", "AMD Radeon Graphics (RADV RAPHAEL)"])
def test_graphics_that_share_ram_are_left_out(name: str) -> None:
    assert found(f"  Vulkan0: {name} (31900 MiB, 20000 MiB free)\n") == ([], [])


def test_gpu_that_llama_server_does_not_see_is_warned_of() -> None:
    gpus, warnings = found("Available devices:\n", CARD)
    assert gpus == []
    assert "This host has 1 GPUs (NVIDIA H100 80GB HBM3 …) and /opt/llama-server sees none" in warnings[0]


def test_other_processes_on_gpu_are_named_and_ours_are_usable() -> None:
    listed = CUDA.replace("80552 MiB free", "2000 MiB free")
    apps = "GPU-1d2c, 4711, 71000\nGPU-1d2c, 100, 5388\nGPU-1d2c, 7, [N/A]\nGPU-other, 9, 50\n"
    (gpu,), _warnings = found(listed, CARD, apps, own={100: "a"}, planned={"a": [9]})
    assert gpu.held_bytes == 5388 * MIB
    assert gpu.usable_bytes == 7388 * MIB
    assert gpu.holders == ("pid 4711 (python3) holds 69.3 GiB",)


def test_planned_figures_count_where_no_tool_says_what_is_held() -> None:
    (gpu,), _warnings = found(CUDA, None, None, own={100: "a"}, planned={"a": [300 * MIB], "stopped": [MIB]})
    assert gpu.held_bytes == 300 * MIB
    # More than there is cannot be had.
    assert gpu.usable_bytes == 80852 * MIB


@pytest.mark.parametrize(
    "runtime", [{"path": "/opt/llama-server", "flags": {}}, {"path": "/opt/llama-server", "flags": None}]
)
def test_build_without_list_devices_leaves_it_to_the_tools(runtime: dict) -> None:
    gpus, _warnings = find_gpus(runtime, fake_devices(""), tools(CARD), {}, {}, str)
    assert [gpu.total_bytes for gpu in gpus] == [81559 * MIB]


def test_build_that_is_not_in_place_yet_leaves_it_to_the_tools() -> None:
    def ask(_argv: Sequence[str]) -> Completed:
        raise FileNotFoundError

    assert len(find_gpus(RUNTIME, ask, tools(CARD), {}, {}, str)[0]) == 1


def test_gpu_that_does_not_answer_is_an_error() -> None:
    def ask(_argv: Sequence[str]) -> Completed:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        find_gpus(RUNTIME, ask, tools(CARD), {}, {}, str)


def test_apps_without_a_figure_are_left_out() -> None:
    assert parse_apps("GPU-1, 4711, 12\nGPU-1, 3, [N/A]\n\nNo running processes found\n") == [("GPU-1", 4711, 12 * MIB)]
