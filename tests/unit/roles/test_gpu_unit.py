# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit that loads the GPU's driver: the sandbox of servers forbids the setuid program by which CUDA does it."""

from __future__ import annotations

import configparser
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._launch import units
from ansible_collections.magi.llama.plugins.module_utils._services import systemd
from ansible_collections.magi.llama.plugins.module_utils._services.table import find_manager
from support.runs import ROOT

from .test_results import Fleet

ROLE = ROOT / "roles/servers"
TASKS = yaml.safe_load((ROLE / "tasks/install.yml").read_text())
[WRITE] = [task for task in TASKS if "gpu" in str(task.get("ansible.builtin.template"))]


def test_unit_loads_the_driver_and_makes_its_nodes_once() -> None:
    text = (ROLE / "templates" / WRITE["ansible.builtin.template"]["src"]).read_text()
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(text)
    service = parser["Service"]
    assert (service["Type"], service["RemainAfterExit"]) == ("oneshot", "yes")
    commands = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStart=")]
    # Both are tried on every host, and one that lacks them starts its servers all the same.
    assert commands == ["-/sbin/modprobe nvidia-uvm", "-/usr/bin/nvidia-modprobe -u -c 0"]


def test_unit_is_where_servers_want_it_and_where_teardown_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(WRITE["ansible.builtin.template"]["dest"])
    assert (str(path.parent), path.name) == (systemd.UNIT_FOLDER, units.GPU_UNIT)
    server: dict[str, Any] = {
        "name": "m",
        "host": "127.0.0.1",
        "port": 8080,
        "argv": ["/x"],
        "memory": {"vram_bytes": 1},
    }
    wanted = units.systemd_dependencies(server)
    assert units.GPU_UNIT in wanted["Wants"] and units.GPU_UNIT in wanted["After"]
    # With the last unit it is removed.
    (tmp_path / path.name).touch()
    monkeypatch.setattr(systemd, "UNIT_FOLDER", str(tmp_path))
    assert str(tmp_path / path.name) in find_manager("systemd").owned_paths("/s", ["m"], [])


def test_unit_is_written_for_gpus_of_nvidia_under_systemd_by_root_alone() -> None:
    cases = [
        (True, True, ["CUDA0"], True),
        (True, True, ["CUDA0,CUDA1"], True),
        (True, True, ["Vulkan0"], False),
        (True, True, [], False),
        (False, True, ["CUDA0"], False),
        (True, False, ["CUDA0"], False),
    ]
    tasks = []
    for number, (root, is_systemd, devices, _written) in enumerate(cases):
        known = {"__servers_fact_host": {"root": root, "sets_groups": is_systemd}}
        plan = {"servers": [{"env": {"MAGI_LLAMA_DEVICES": device}} for device in devices] or [{"env": {}}]}
        said = {"ansible.builtin.debug": {"msg": f"case {number} writes it"}, "when": WRITE["when"]}
        # A variable in place of the fact.
        tasks.append({**said, "vars": {**known, "ansible_facts": {"llama_plan": plan}}})
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        fleet = Fleet(Path(folder))
        fleet.add("h")
        own = Path(folder) / "own.yml"
        play = {"hosts": "h", "gather_facts": False, "vars_files": [str(ROLE / "vars/main.yml")], "tasks": tasks}
        own.write_text(json.dumps([play]))
        output = fleet.run(str(own.with_suffix("")))
    assert [f"case {number} writes it" in output for number in range(len(cases))] == [case[-1] for case in cases]
