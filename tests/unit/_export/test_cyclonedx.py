# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bill of materials, as CycloneDX's own validator reads it, against plan, registry and runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._export import cyclonedx
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import HostPlan, workloads_of
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from .conftest import SETTINGS, host_plan, server, written

RUNTIME = {
    **{"path": "/opt/llama/bin/llama-server", "version": "0.7.0", "build": 11669, "commit": "63248fc3e"},
    **{"flavour": "llama.cpp", "sha256": "ab" * 32, "source": "package"},
}


def record(name: str, **more: Any) -> dict[str, Any]:
    return {
        **{"id": name, "kind": "model", "path": f"/models/{name}.gguf", "files": [f"/models/{name}.gguf"]},
        **{
            "size_bytes": 1000,
            "architecture": "qwen3",
            "quantization": "Q4_K_M",
            "bits_per_weight": 4.85,
            "tier": "Q4",
        },
        **{"parameter_count": 8_000_000_000, "context_length": 40960, "sha256": ["01" * 32]},
        **{"license": "apache-2.0", "base_model": "Qwen/Qwen3-8B", "source": "https://example.org/Qwen/Qwen3-8B"},
        **more,
    }


def fleet(*models: dict[str, Any], companions: tuple[dict[str, Any], ...] = (), name: str = "gpu-1") -> HostPlan:
    servers = [server(str(one["id"]), 8080 + place) for place, one in enumerate(models)]
    registry = {"scan_paths": ["/models"], "models": list(models), "companions": list(companions)}
    return replace(host_plan(*servers, name=name), registry=registry, runtime=RUNTIME)


def bill_of(folder: Path, *hosts: HostPlan) -> dict[str, Any]:
    """The bill, if CycloneDX's strict validator and its own reader take it."""
    text = (written(folder, "cyclonedx", *hosts) / "bom.json").read_text()
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert error is None, error
    bill = json.loads(text)
    assert len(Bom.from_json(bill).components) == len(bill["components"])  # type: ignore[attr-defined]
    return dict(bill)


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {one["name"].removeprefix("magi.llama:"): one["value"] for one in component["properties"]}


def test_model_has_checksum_licence_source_and_quantization(tmp_path: Path) -> None:
    bill = bill_of(tmp_path, fleet(record("a")), fleet(record("a"), name="gpu-2"))
    program, model = bill["components"]
    assert model["type"] == "machine-learning-model" and model["name"] == "a"
    assert model["hashes"] == [{"alg": "SHA-256", "content": "01" * 32}]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert model["externalReferences"][0]["url"] == "https://example.org/Qwen/Qwen3-8B"
    assert model["pedigree"]["ancestors"][0]["name"] == "Qwen/Qwen3-8B"
    assert model["modelCard"]["modelParameters"]["modelArchitecture"] == "qwen3"
    said = properties(model)
    assert (said["quantization"], said["bits_per_weight"], said["tier"]) == ("Q4_K_M", "4.85", "Q4")
    assert [one["value"] for one in model["properties"] if one["name"].endswith(":server")] == ["gpu-1/a", "gpu-2/a"]
    assert (program["name"], program["version"], properties(program)["build"]) == ("llama-server", "0.7.0", "11669")
    assert program["hashes"][0]["content"] == "ab" * 32
    depends = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert depends[program["bom-ref"]] == [model["bom-ref"]] and len(depends["llama-servers"]) == 2


def test_same_name_with_other_content_is_another_component(tmp_path: Path) -> None:
    bill = bill_of(tmp_path, fleet(record("a")), fleet(record("a", sha256=["02" * 32]), name="gpu-2"))
    digests = [one["hashes"][0]["content"] for one in bill["components"] if one["name"] == "a"]
    assert sorted(digests) == ["01" * 32, "02" * 32]


def test_shards_and_projector_are_parts_of_their_model(tmp_path: Path) -> None:
    files = [f"/models/a-0000{number}-of-00002.gguf" for number in (1, 2)]
    shards = record("a", path=files[0], files=files, sha256=["01" * 32, "02" * 32])
    projector = {
        "kind": "mmproj",
        "path": "/models/mmproj.gguf",
        "files": ["/models/mmproj.gguf"],
        "sha256": ["03" * 32],
    }
    host = fleet(shards, companions=(projector,))
    argv = host.plan["servers"][0]["argv"]
    argv[argv.index("--model") + 1] = files[0]
    argv[1:1] = ["--mmproj", "/models/mmproj.gguf"]
    bill = bill_of(tmp_path, host)
    parts = {one["name"]: one for one in bill["components"]}
    assert [one["hashes"][0]["content"] for one in parts["a"]["components"]] == ["01" * 32, "02" * 32]
    depends = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert depends[parts["a"]["bom-ref"]] == [parts["mmproj.gguf"]["bom-ref"]]


def test_texts_of_a_header_that_are_not_what_they_should_be_leave_the_bill_valid(tmp_path: Path) -> None:
    odd = record("a", license="my own", source="javascript:alert(1) x", base_model="ä\udcff", sha256=[None])
    model = bill_of(tmp_path, fleet(odd))["components"][1]
    assert model["licenses"] == [{"license": {"name": "my own"}}]
    assert "externalReferences" not in model and "hashes" not in model


def test_same_content_gives_the_same_bill(tmp_path: Path) -> None:
    bills = [bill_of(tmp_path / str(number), *hosts) for number, hosts in enumerate(_orders())]
    assert (
        bills[0] == bills[1] and bills[0]["serialNumber"] != bill_of(tmp_path / "o", fleet(record("b")))["serialNumber"]
    )


def _orders() -> list[list[HostPlan]]:
    hosts = [fleet(record("a"), record("b")), fleet(record("b"), name="gpu-2")]
    return [hosts, hosts[::-1]]


def test_licences_are_those_that_the_standard_lists(tmp_path: Path) -> None:
    names = sorted(cyclonedx._SPDX.values())
    models = [record(f"m{place}", license=name.lower()) for place, name in enumerate(names)]
    found = bill_of(tmp_path, fleet(*models))["components"][1:]
    assert sorted(one["licenses"][0]["license"]["id"] for one in found) == names


def test_missing_checksum_is_warned_of_with_what_to_do() -> None:
    host = replace(fleet(record("a", sha256=[None])), runtime={})
    workloads, _warnings = workloads_of([host], SETTINGS)
    files, program = FORMATS["cyclonedx"].notes(workloads, SETTINGS)
    assert "/models/a.gguf" in files and "manifest.yml" in files
    assert program.startswith("gpu-1: llama-server is not installed yet")
