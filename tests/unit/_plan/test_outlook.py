# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a change costs: memory before, during and after it, seconds of downtime, changed command lines."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.processes import Memory, Process
from ansible_collections.magi.llama.plugins.module_utils._plan.gpu import Gpu
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.memory_limits import check_memory
from ansible_collections.magi.llama.plugins.module_utils._plan.outlook import with_outlook
from ansible_collections.magi.llama.plugins.module_utils._plan.waves import changed_in_waves

GIB = 1024**3
PROFILE = {"name": "p", "source": "p.yml"}
GPUS = (Gpu(0, "H100", 80 * GIB, 60 * GIB, "nvidia", "CUDA0"), Gpu(1, "H100", 80 * GIB, 80 * GIB, "nvidia", "CUDA1"))


def server(name: str, action: str, *gpu_gib: int, port: int = 8080, context: str = "2") -> dict[str, Any]:
    """A server that needs 1 GiB of RAM, and these GiB of each GPU."""
    rows = [size * GIB for size in gpu_gib]
    return {
        "name": name,
        "model_id": name,
        "port": port,
        "argv": ["/usr/bin/llama-server", "--alias", name, "--port", str(port), "--ctx-size", context, "--metrics"],
        "env": {"MAGI_LLAMA_SERVER": name},
        "revision": "new",
        "memory": {"ram_bytes": GIB, "vram_bytes": sum(rows), "gpu_bytes": rows},
        "action": action,
        "reason": "r",
    }


def outlook(
    planned: list[dict[str, Any]], before: list[dict[str, Any]], gateways: bool = False, gpus: tuple[Gpu, ...] = GPUS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The planned servers by name, and the parts of the plan, where those before run."""
    env = {"MAGI_LLAMA_REVISION": "old"}
    running = {
        one["name"]: Process(number, 1, one["name"], tuple(one["argv"]), env, 0, 0.0, 1.0, GIB)
        for number, one in enumerate(before)
    }
    host = Host(Memory(64 * GIB, 60 * GIB), gpus, before, running, ready_seconds={"a": 3.04})
    served = dict.fromkeys(running, 1)
    settings = Settings("/state", "systemd", without_downtime=gateways, served_here=served, allow_downtime=True)
    memory = check_memory(planned, PROFILE, settings, host)
    servers, change = changed_in_waves(planned, PROFILE, settings, host)
    servers, parts = with_outlook(servers, memory, change, host)
    return {one["name"]: one for one in servers}, parts


def in_gib(need: dict[str, Any]) -> tuple[int, int, list[int]]:
    sizes = [need["ram_bytes"], need["vram_bytes"], *need["gpu_bytes"]]
    ram, vram, *gpus = (size // GIB for size in sizes)
    return ram, vram, gpus


def test_memory_has_each_gpu_before_during_and_after() -> None:
    before = [server("a", "keep", 10, 0), server("old", "keep", 0, 30, port=8082)]
    planned = [server("a", "keep", 10, 0), server("b", "start", 20, 5, port=8081), {**before[1], "action": "stop"}]
    memory = outlook(planned, before)[1]["memory"]
    assert in_gib(memory["now"]) == (2, 40, [10, 30])
    assert in_gib(memory["after"]) == (2, 35, [30, 5])
    assert in_gib(memory["peak"]) == (2, 40, [30, 30])
    assert memory["gpus"][0] == {"name": "CUDA0 (H100)", "total_bytes": 80 * GIB, "free_bytes": 60 * GIB}


def test_peak_has_a_stand_in_next_to_the_server_it_stands_in_for() -> None:
    before = [server("a", "keep", 10, 0)]
    servers, parts = outlook([server("a", "restart", 12, 0)], before, gateways=True)
    assert in_gib(parts["memory"]["peak"]) == in_gib(parts["peak"]) == (2, 24, [24, 0])
    assert (servers["a"]["change"], servers["a"]["downtime_seconds"], parts["downtime_seconds"]) == ("surge", 0.0, 0.0)


def test_downtime_is_that_of_the_last_start_else_by_size() -> None:
    before = [server("a", "keep"), server("b", "keep", port=8081), server("c", "keep", port=8082)]
    planned = [{**before[0], "action": "restart"}, {**before[1], "action": "restart"}, before[2]]
    servers, parts = outlook([*planned, server("new", "start", port=8083)], before, gpus=())
    seconds = {name: one["downtime_seconds"] for name, one in servers.items()}
    assert seconds == {"a": 3.0, "b": round(GIB / 500e6 + 2, 1), "c": 0.0, "new": 0.0}
    assert parts["downtime_seconds"] == 7.1


def test_downtime_with_gateways_is_that_of_servers_that_are_away() -> None:
    before = [server("a", "keep", 50, 0)]
    servers, parts = outlook([server("a", "restart", 50, 0)], before, gateways=True)
    assert (servers["a"]["change"], parts["away"]) == ("away", {"a": 3.0})
    assert servers["a"]["downtime_seconds"] == parts["downtime_seconds"] == 3.0


def test_argv_diff_has_a_line_for_each_flag_that_changes() -> None:
    before = [server("a", "keep"), server("old", "keep", port=8081)]
    planned = [server("a", "restart", context="4"), {**before[1], "action": "stop"}]
    servers, _parts = outlook([*planned, server("new", "start", port=8082)], before)
    assert servers["a"]["argv_diff"] == ["- --ctx-size 2", "+ --ctx-size 4"]
    assert servers["old"]["argv_diff"][:2] == ["- /usr/bin/llama-server", "- --alias old"]
    assert servers["new"]["argv_diff"][-2:] == ["+ --ctx-size 2", "+ --metrics"]


def test_argv_diff_of_a_server_that_does_not_run_is_against_its_record() -> None:
    from ansible_collections.magi.llama.plugins.module_utils._plan.differences import argv_diff

    previous, stopped = server("a", "keep"), server("a", "start", context="4")
    assert argv_diff(stopped, previous, None) == ["- --ctx-size 2", "+ --ctx-size 4"]
    assert argv_diff({**previous, "action": "start"}, previous, None) == []
    assert argv_diff(previous, None, None) == []
