# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hash of a plan: the same where a run would do the same, and another one where anything of that differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Memory, Process
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import result_document, to_text
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.plan import make_plan
from ansible_collections.magi.llama.plugins.module_utils._plan.plan_hash import fleet_hash, given_hash, host_hash
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import validate

GIB = 1024**3
RUNTIME = {
    "path": "/usr/bin/llama-server",
    "identity": "abc",
    "installed": True,
    "flags": {"ctx_size": {"spelling": "--ctx-size", "value": True}},
}
CONFIGS = {"/etc/systemd/system/magi-llama-a.service": "0" * 64}


@pytest.fixture(autouse=True)
def one_gib_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(*_: Any, **__: Any) -> dict[str, Any]:
        sizes = {"total_bytes": GIB, "ram_bytes": GIB, "vram_bytes": 0, "growth_bytes": 0, "gpu_fixed_bytes": 0}
        return {**sizes, "slot_context": 4096}

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.drafts.estimate", estimate)


class Inputs:
    """All that a plan of the servers a and b is made from, where both run as planned."""

    def __init__(self) -> None:
        self.models = {name: self.model(name) for name in ("a", "b")}
        self.parameters: dict[str, Any] = {"ctx_size": 8}
        self.profile = "p"
        self.runtime: dict[str, Any] = dict(RUNTIME)
        self.settings = Settings("/state", "supervisor")
        self.configs = dict(CONFIGS)
        self.host = Host(Memory(64 * GIB, 32 * GIB))
        running = self.plan()["servers"]
        processes = {one["name"]: self.process(one, 7) for one in running}
        self.host = replace(self.host, record=running, running=processes)

    def model(self, name: str) -> dict[str, Any]:
        path = f"/models/{name}.gguf"
        facts = {"kind": "model", "tier": "Q4", "architecture": "llama", "mmproj": None, "memory": {}}
        fingerprint = {"size": 1, "mtime_ns": 2, "inode": 3}
        return {**facts, "id": name, "display_name": name, "path": path, "files": [path], "fingerprint": fingerprint}

    def process(self, server: dict[str, Any], pid: int) -> Process:
        argv, env = tuple(server["argv"]), dict(server["env"])
        return Process(pid, 1, server["name"], argv, env, 0, float(pid), float(pid), pid)

    def plan(self) -> dict[str, Any]:
        registry = {"models": list(self.models.values()), "rejected": [], "companions": []}
        wanted = {"enabled_models": sorted(self.models), "parameters": self.parameters}
        profile = validate(self.profile, f"{self.profile}.yml", wanted)
        return {**make_plan(registry, profile, self.runtime, self.settings, self.host), "configs": self.configs}


def killed(inputs: Inputs) -> None:
    inputs.host = replace(inputs.host, running={"b": inputs.host.running["b"]})


def other_process(inputs: Inputs) -> None:
    own = inputs.host.running["a"]
    other = replace(own, argv=(*own.argv, "--metrics"), env={**own.env, "MAGI_LLAMA_REVISION": "by hand"})
    inputs.host = replace(inputs.host, running={**inputs.host.running, "a": other})


def replaced_model(inputs: Inputs) -> None:
    inputs.models["a"]["fingerprint"]["inode"] = 4


CHANGES: dict[str, Callable[[Inputs], Any]] = {
    "a parameter": lambda inputs: inputs.parameters.update(ctx_size=9),
    "a model's file": replaced_model,
    "a model": lambda inputs: inputs.models.pop("b"),
    "llama-server": lambda inputs: inputs.runtime.update(identity="def"),
    "the profile": lambda inputs: setattr(inputs, "profile", "q"),
    "a port": lambda inputs: setattr(inputs, "settings", replace(inputs.settings, ports={"a": 8090})),
    "the revision": lambda inputs: setattr(
        inputs, "settings", replace(inputs.settings, restart_triggers={"user": "x"})
    ),
    "how it stops": lambda inputs: setattr(inputs, "settings", replace(inputs.settings, stop_timeout=3)),
    "a launch config": lambda inputs: inputs.configs.update(dict.fromkeys(CONFIGS, "1" * 64)),
    "a killed server": killed,
    "another process": other_process,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_hash_differs_when_something_that_is_applied_or_decided_by_changes(change: Callable[[Inputs], Any]) -> None:
    inputs = Inputs()
    before = host_hash(inputs.plan())
    change(inputs)
    assert host_hash(inputs.plan()) != before


def test_hash_is_the_same_after_what_changes_by_itself() -> None:
    inputs = Inputs()
    before = host_hash(inputs.plan())
    running = {name: replace(one, pid=99, uptime_seconds=5.0, rss_bytes=9) for name, one in inputs.host.running.items()}
    inputs.host = replace(
        inputs.host, running=running, memory=Memory(64 * GIB, 20 * GIB), ready_seconds={"a": 4.0, "b": 2.0}
    )
    assert host_hash(inputs.plan()) == before
    assert host_hash({**inputs.plan(), "warnings": ["the disk is nearly full"]}) == before


def test_downtime_is_not_hashed() -> None:
    inputs = Inputs()
    inputs.parameters["ctx_size"] = 9
    first = inputs.plan()
    inputs.host = replace(inputs.host, ready_seconds={"a": 4.0})
    second = inputs.plan()
    assert first["downtime_seconds"] != second["downtime_seconds"]
    assert host_hash(first) == host_hash(second)


def test_hash_is_the_same_in_any_order() -> None:
    plan = Inputs().plan()
    turned = dict(reversed(list(plan.items())))
    turned["servers"] = [dict(reversed(list(one.items()))) for one in reversed(plan["servers"])]
    assert host_hash(turned) == host_hash(plan)


def test_hash_can_be_computed_from_the_document() -> None:
    plan = Inputs().plan()
    plan["servers"][0]["display_name"] = "ü\x1b[2J"
    document = json.loads(to_text(result_document("plan", {"h": {**plan, "hash": host_hash(plan)}})))
    assert host_hash(document["hosts"]["h"]) == document["hosts"]["h"]["hash"]
    assert fleet_hash(document["hosts"]) == document["hash"]


def test_hash_of_a_fleet_needs_every_host_and_has_their_names() -> None:
    one, two = {"hash": "1" * 64}, {"hash": "2" * 64}
    found = fleet_hash({"a": one, "b": two})
    assert found == fleet_hash({"b": two, "a": one})
    assert found != fleet_hash({"a": two, "b": one})
    assert found != fleet_hash({"a": one})
    assert fleet_hash({"a": one, "b": {"task": None, "error": "no route"}}) is None
    assert fleet_hash({"a": one, "b": {**two, "task": "t", "error": "e"}}) is None
    assert fleet_hash({"a": one, "b": {}}) is None
    assert fleet_hash({}) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0123456789abcdef", "0123456789abcdef"),
        (" 0123456789ABCDEF\n", "0123456789abcdef"),
        ("a" * 64, "a" * 64),
        (1234567890123456, "1234567890123456"),
        ("a" * 15, None),
        ("a" * 65, None),
        ("plan.json", None),
        ("", None),
    ],
)
def test_given_hash_is_long_enough_and_hexadecimal(value: Any, found: str | None) -> None:
    assert given_hash(value) == found
