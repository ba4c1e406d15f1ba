# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of servers for other programs, against the plan."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import ExportError, HostPlan, workloads_of

from .conftest import SETTINGS, host_plan, server, written


@pytest.fixture
def fleet(plan: HostPlan) -> list[HostPlan]:
    """Servers on loopback, on one address and on all, with a key and without."""
    one = server("qwen3-8b-q4_k_m", 8080, host="0.0.0.0", generation=3)
    two = server("rank", 8081, host="2001:db8::5", kind="reranker")
    return [plan, replace(host_plan(one, two, name="gpu-2", profile="production"), address="192.0.2.7")]


def notes(form: str, fleet: list[HostPlan]) -> list[str]:
    return FORMATS[form].notes(workloads_of(fleet, SETTINGS)[0], SETTINGS)


def test_endpoints_are_where_clients_reach_the_planned_servers(tmp_path: Path, fleet: list[HostPlan]) -> None:
    found = json.loads((written(tmp_path, "endpoints", *fleet) / "endpoints.json").read_text())["endpoints"]
    urls = {f"{one['host']}/{one['server']}": one["url"] for one in found}
    assert urls["gpu-1/qwen3-8b-q4_k_m-2"] == "http://127.0.0.1:8081"
    assert urls["gpu-2/qwen3-8b-q4_k_m"] == "http://192.0.2.7:8080"
    assert urls["gpu-2/rank"] == "http://[2001:db8::5]:8081" and len(urls) == 5
    assert [one["needs_api_key"] for one in found] == [True, True, True, False, False]
    (warning,) = notes("endpoints", fleet)
    assert "Servers of gpu-1 listen on a loopback" in warning and "servers_host" in warning


def test_targets_have_labels_that_prometheus_takes(tmp_path: Path, fleet: list[HostPlan]) -> None:
    groups = json.loads((written(tmp_path, "file_sd", *fleet) / "llama-servers.json").read_text())
    assert len(groups) == 5
    for group in groups:
        assert group.keys() == {"targets", "labels"} and all("/" not in target for target in group["targets"])
        assert all(re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", name) for name in group["labels"])
        assert all(isinstance(value, str) for value in group["labels"].values())
    labels = {group["targets"][0]: group["labels"] for group in groups}["192.0.2.7:8080"]
    assert labels == {
        **{"host": "gpu-2", "server": "qwen3-8b-q4_k_m", "model": "qwen3-8b-q4_k_m"},
        **{"tier": "Q4", "profile": "production", "generation": "3"},
    }


def test_server_without_metrics_is_left_out_of_the_targets(tmp_path: Path) -> None:
    quiet = server("a", 8080, host="192.0.2.1")
    quiet["argv"].remove("--metrics")
    assert json.loads((written(tmp_path, "file_sd", host_plan(quiet)) / "llama-servers.json").read_text()) == []
    assert notes("file_sd", [host_plan(quiet)]) == ["gpu-1: a: left out, as the profile has metrics off."]


def test_litellm_has_a_deployment_for_each_server_of_a_model(tmp_path: Path, fleet: list[HostPlan]) -> None:
    content = yaml.safe_load((written(tmp_path, "litellm", *fleet) / "litellm.yaml").read_text())
    found = {one["model_info"]["id"]: one for one in content["model_list"]}
    same = [one for one in found.values() if one["model_name"] == "qwen3-8b-q4_k_m"]
    assert len(same) == 3 and len(found) == 4 and found["gpu-1/bge-m3"]["model_info"]["mode"] == "embedding"
    assert found["gpu-2/qwen3-8b-q4_k_m"]["litellm_params"] == {
        **{"model": "openai/qwen3-8b-q4_k_m", "api_base": "http://192.0.2.7:8080/v1"},
        **{"api_key": "none", "max_parallel_requests": 2},
    }
    assert found["gpu-1/bge-m3"]["litellm_params"]["api_key"] == "os.environ/LLAMA_API_KEY"
    assert notes("litellm", fleet)[0].startswith("gpu-2: rank: left out")


def test_llama_swap_starts_the_planned_command_line(tmp_path: Path) -> None:
    plain = [server("a", 8080, host="0.0.0.0"), server("a-2", 8081, model="a")]
    for one in plain:
        one["argv"][-1] = "it's {{ a }}"
    plain[0]["argv"][6] = "0.0.0.0"
    folder = written(tmp_path, "llama-swap", host_plan(*plain))
    content = yaml.safe_load((folder / "gpu-1/llama-swap.yaml").read_text())
    assert [shlex.split(content["models"][one["name"]]["cmd"]) for one in plain] == [one["argv"] for one in plain]
    assert (
        content["models"]["a"]["proxy"] == "http://127.0.0.1:8080" and content["models"]["a-2"]["useModelName"] == "a"
    )
    assert content["groups"]["planned"]["members"] == ["a", "a-2"] and content["healthCheckTimeout"] == 120


def test_llama_swap_refuses_what_it_would_replace() -> None:
    workloads, _warnings = workloads_of([host_plan(server("a", 8080))], SETTINGS)
    with pytest.raises(ExportError, match=r"a has .*\$\{HOME\}.*chat_template_file"):
        FORMATS["llama-swap"].render(workloads, SETTINGS)
