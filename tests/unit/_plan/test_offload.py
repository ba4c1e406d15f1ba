# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layers that the plan puts on GPUs where the profile says n_gpu_layers: auto, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.argv import flag_value
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Memory, Process
from ansible_collections.magi.llama.plugins.module_utils._models.memory_shape import memory_shape
from ansible_collections.magi.llama.plugins.module_utils._plan.gpu import Gpu
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, PlanError, Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.offload import (
    NO_GPU,
    Wish,
    assign_layers,
    layer_flags,
    running_layers,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.plan import make_plan
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import validate

MIB, GIB = 1024**2, 1024**3


def wish(name: str, **more: Any) -> Wish:
    """A server of 10 layers that needs 5, and 10 for each layer."""
    return Wish(name, 10, lambda count: [5 + 10 * count], **more)


@pytest.mark.parametrize(
    ("wishes", "free", "expected"),
    [
        ([wish("a")], 115, {"a": 10}),
        # 10 are kept free.
        ([wish("a")], 114, {"a": 9}),
        ([wish("a")], 15, {"a": 0}),
        ([wish("a")], 14, {"a": NO_GPU}),
        # The first has what it wants; the second gets the rest.
        ([wish("a"), wish("b")], 200, {"a": 10, "b": 8}),
        # A number of the profile is kept in any order.
        ([wish("a"), wish("b", own=10)], 200, {"a": 8}),
        # A running server is not restarted for what is just enough, nor for a layer more.
        ([wish("a", running=10)], 105, {"a": 10}),
        ([wish("a", running=9)], 97, {"a": 9}),
        ([wish("a", running=5)], 90, {"a": 5}),
        ([wish("a", running=5)], 115, {"a": 10}),
        ([wish("a", running=NO_GPU)], 90, {"a": 7}),
    ],
)
def test_layers_that_fit(wishes: list[Wish], free: int, expected: dict[str, int]) -> None:
    assert assign_layers(wishes, [free], 10) == expected


def test_gpu_that_is_not_used_may_be_full() -> None:
    assert assign_layers([Wish("a", 2, lambda count: [5 * count, 0])], [30, -5], 10) == {"a": 2}


@pytest.mark.parametrize(
    ("count", "flags", "expected"),
    [
        (33, {"n_gpu_layers": {"auto": True}}, {"n_gpu_layers": "all"}),
        (33, {"n_gpu_layers": {}}, {"n_gpu_layers": 33}),
        (33, {"gpu_layers": {"auto": True}}, {"gpu_layers": "all"}),
        (20, {"n_gpu_layers": {"auto": True}}, {"n_gpu_layers": 20}),
        (NO_GPU, {"n_gpu_layers": {}, "device": {}}, {"n_gpu_layers": 0, "device": "none"}),
        (NO_GPU, {"n_gpu_layers": {}}, {"n_gpu_layers": 0}),
        (33, {"ctx_size": {}}, {}),
    ],
)
def test_layers_as_flags(count: int, flags: dict, expected: dict) -> None:
    assert layer_flags(count, 33, flags) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--n-gpu-layers", "auto"], None),
        (["--n-gpu-layers", "all"], 33),
        (["--gpu-layers", "20"], 20),
        (["--n-gpu-layers", "99"], 33),
        (["--n-gpu-layers", "0", "--device", "none"], NO_GPU),
    ],
)
def test_layers_of_a_running_server(words: list[str], expected: int | None) -> None:
    assert running_layers(["llama-server", *words], 33) == expected


# --- in the plan ------------------------------------------------------------------------------------------------------


class Tensor:
    type = 12
    shape = (4096, 4096)

    def __init__(self, name: str, n_bytes: int) -> None:
        self.name, self.n_bytes = f"{name}.weight", n_bytes


SHAPE = memory_shape(
    {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.context_length": 8192,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    },
    {"tokenizer.ggml.tokens": 32000},
    [Tensor("token_embd", 70 * MIB), Tensor("output", 100 * MIB)]
    + [Tensor(f"blk.{layer}.attn_q", 120 * MIB) for layer in range(32)],
)
MODEL = {
    "id": "a",
    "display_name": "A",
    "kind": "model",
    "path": "/models/a.gguf",
    "files": ["/models/a.gguf"],
    "fingerprint": {"size": 1, "mtime_ns": 2, "inode": 3},
    "memory": SHAPE,
}
FLAGS = {
    "n_gpu_layers": {"spelling": "--n-gpu-layers", "value": True, "auto": True},
    "device": {"spelling": "--device", "value": True},
    "ctx_size": {"spelling": "--ctx-size", "value": True},
    "parallel": {"spelling": "--parallel", "value": True},
    "threads": {"spelling": "--threads", "value": True},
}


def planned(free_bytes: int, layers: Any = "auto", running: dict | None = None, **settings: Any) -> dict[str, Any]:
    gpu = Gpu(0, "H100", 79 * GIB, free_bytes, "nvidia", "CUDA0")
    parameters = {"n_gpu_layers": layers, "ctx_size": 4096, "parallel": 1, "threads": "auto"}
    profile = validate("p", "p.yml", {"enabled_models": ["a"], "parameters": parameters})
    registry = {"models": [MODEL], "rejected": [], "companions": []}
    host = Host(Memory(64 * GIB, 64 * GIB), [gpu], running=running or {}, cores=8)
    runtime = {"path": "/bin/llama-server", "identity": "x", "build": 11669, "flags": FLAGS}
    return make_plan(registry, profile, runtime, Settings("/state", "systemd", **settings), host)


def flag(plan: dict[str, Any], name: str) -> str | None:
    return flag_value(plan["servers"][0]["argv"], name)


def test_full_offload_is_rendered_so_that_too_little_memory_fails() -> None:
    for layers in ("auto", None, "all"):
        plan = planned(80 * GIB, layers)
        assert (flag(plan, "--n-gpu-layers"), flag(plan, "--threads")) == ("all", None)
        assert not [text for text in plan["warnings"] if "layers" in text]


def test_what_does_not_fit_on_the_gpu_is_in_ram_and_is_said() -> None:
    plan = planned(5 * GIB)
    count = int(flag(plan, "--n-gpu-layers") or 0)
    memory = plan["servers"][0]["memory"]
    assert 0 < count < 33
    assert 4 * GIB - 140 * MIB < memory["vram_bytes"] <= 4 * GIB
    # The layers in RAM are computed on the CPU.
    assert flag(plan, "--threads") == "8"
    assert f"a: {count} of its 33 layers fit into what the GPUs have free." in "\n".join(plan["warnings"])


def test_gpu_without_any_room_is_left_alone() -> None:
    plan = planned(GIB)
    assert (flag(plan, "--n-gpu-layers"), flag(plan, "--device")) == ("0", "none")
    assert plan["servers"][0]["memory"]["vram_bytes"] == 0
    assert "a: none of its 33 layers fit" in "\n".join(plan["warnings"])


def test_number_of_layers_of_the_profile_is_kept() -> None:
    assert flag(planned(9 * GIB, 20), "--n-gpu-layers") == "20"


def test_overcommit_leaves_the_layers_to_llama_server() -> None:
    assert flag(planned(GIB, memory_overcommit=True), "--n-gpu-layers") == "auto"


def test_running_server_keeps_its_layers_when_a_little_less_is_free() -> None:
    server = planned(5 * GIB)["servers"][0]
    process = Process(9, 1, "a", tuple(server["argv"]), dict(server["env"]), 0, 0.0, 9.0, 0)
    again = planned(5 * GIB - 300 * MIB, running={"a": process})["servers"][0]
    assert (again["action"], again["argv"]) == ("keep", server["argv"])


def test_server_is_restarted_when_its_gpu_is_back() -> None:
    server = planned(80 * GIB)["servers"][0]
    assert server["env"]["MAGI_LLAMA_DEVICES"] == "CUDA0 (H100)"
    without = {key: value for key, value in server["env"].items() if key != "MAGI_LLAMA_DEVICES"}
    process = Process(9, 1, "a", tuple(server["argv"]), without, 0, 0.0, 9.0, 0)
    again = planned(80 * GIB, running={"a": process})["servers"][0]
    assert (again["action"], again["reason"]) == ("restart", "its GPUs changed (none → CUDA0 (H100))")


def test_server_without_layers_on_a_gpu_does_not_depend_on_it() -> None:
    assert "MAGI_LLAMA_DEVICES" not in planned(GIB)["servers"][0]["env"]


def test_server_without_a_gpu_is_refused_where_one_is_required() -> None:
    with pytest.raises(PlanError, match="server a: servers_require_gpu is true, and none of its layers is on a GPU"):
        planned(GIB, require_gpu="true")
    assert planned(80 * GIB, require_gpu="true")["servers"][0]["require_gpu"] == "true"
    assert "require_gpu" not in planned(80 * GIB)["servers"][0]
