# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of all hosts, where their files are from, and where another server of each fits."""

from __future__ import annotations

from pathlib import Path

from magi_llama_console.fleet.capacity import capacity
from magi_llama_console.fleet.facts import Gpu, Host, Memory, Server
from magi_llama_console.fleet.inventory import parse
from magi_llama_console.fleet.models import manifest_of, merged, read_manifest, rejected

BIG = {"id": "big", "kind": "model", "tier": "Q4", "size_bytes": 900, "path": "/m/big.gguf", "license": "mit"}
SMALL = {"id": "small", "kind": "model", "tier": "Q2", "size_bytes": 100, "path": "/m/small.gguf"}


def test_model_on_two_hosts_is_one_entry_with_its_provenance() -> None:
    hosts = [
        Host(
            "a", models=({"id": "big", "path": "/other/big.gguf"},), rejected=({"path": "/m/x", "reason": "truncated"},)
        ),
        Host("b", models=(BIG, SMALL)),
    ]
    found = merged(hosts, {"sub/big.gguf": {"sha256": "f00", "size": 900}})
    assert [(one["id"], one["hosts"], one["size_bytes"]) for one in found] == [
        ("big", ["a", "b"], 900),
        ("small", ["b"], 100),
    ]
    assert (found[0]["provenance"], found[1]["provenance"]) == ({"sha256": "f00", "size": 900, "license": "mit"}, None)
    assert rejected(hosts) == [{"host": "a", "path": "/m/x", "reason": "truncated"}]


def test_manifest_is_read_next_to_the_inventory_and_a_broken_one_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}
    (tmp_path / "models.lock.yml").write_text("schema_version: 1\nfiles:\n  a.gguf: {sha256: f00}\n")
    assert read_manifest(tmp_path) == read_manifest(tmp_path / "hosts.yml") == {"a.gguf": {"sha256": "f00"}}
    (tmp_path / "models.lock.yml").write_text("files: [")
    assert read_manifest(tmp_path) == {}


def test_manifest_that_has_to_be_signed_is_left_to_the_scans_that_verify_it(tmp_path: Path) -> None:
    (tmp_path / "models.lock.yml").write_text("schema_version: 1\nfiles:\n  big.gguf: {sha256: forged}\n")

    def found(**variables: str) -> dict[str, dict[str, str]]:
        listing = {"models": {"hosts": ["a", "b"]}, "_meta": {"hostvars": {"a": {}, "b": variables}}}
        return manifest_of(parse(listing), tmp_path)

    assert found() == found(registry_manifest_public_key="") == {"big.gguf": {"sha256": "forged"}}
    for key in ("RWSZMPqNMFVTObI8WwRqlr8CNej7M+Y44QkMB6nnk+b4rkyv4MGSBQjs", "{{ of_the_fleet }}"):
        assert found(registry_manifest_public_key=key) == {}


def test_estimate_of_a_plan_comes_before_the_size_of_the_file() -> None:
    server = Server("a", "small", "small", 8080, "ready", True, planned_bytes=500)
    gpu = Gpu(0, None, Memory(1000, 400, 0))
    hosts = [
        Host("a", {"small": server}, ram=Memory(2000, 600, 0), models=(BIG, SMALL)),
        Host("b", gpus=(gpu,), ram=Memory(9, 950, 0)),
        Host("c"),
    ]
    found = {
        one["host"]: {
            model["model_id"]: (model["needs_bytes"], model["basis"], model["fits"]) for model in one["models"]
        }
        for one in capacity(hosts)
    }
    assert found["a"] == {"big": (900, "file", "no"), "small": (500, "plan", "ram")}
    assert found["b"] == {"big": (900, "file", "ram"), "small": (500, "plan", "ram")}
    assert {fits for *_rest, fits in found["c"].values()} == {"unknown"}
