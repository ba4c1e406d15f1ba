# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""export: the plans of all hosts, written or not at all."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import load_spec

ROOT = Path(__file__).resolve().parents[3]
PLANNED = {
    **{"name": "a", "model_id": "a", "port": 8080, "host": "127.0.0.1", "action": "keep", "reason": ""},
    "argv": ["/bin/llama-server", "--model", "/models/a.gguf", "--host", "127.0.0.1", "--port", "8080"],
    "env": {},
    "memory": {"ram_bytes": 100},
    **{"memory_max_bytes": 200, "max_startup_time": 60, "stop_timeout": 30, "revision": "0" * 12},
}


def host(name: str, **more: Any) -> dict[str, Any]:
    plan = {"profile": "p", "start": {}, "servers": [PLANNED], "memory": {}, "warnings": []}
    scan = {"llama_registry": {"scan_paths": ["/models"]}}
    return {
        "inventory_hostname": name,
        "__servers_planned": {"ansible_facts": {"llama_plan": plan}},
        "__registry_scan": {"ansible_facts": scan},
        **more,
    }


def export(run_action: Any, folder: Path, *hosts: dict[str, Any], check: bool = False, **arguments: Any) -> Any:
    known = {one["inventory_hostname"]: one for one in hosts or (host("h"),)}
    given = {"format": "compose", "folder": str(folder), **arguments}
    return run_action("export", given, hostvars=known, ansible_play_hosts_all=list(known), check=check)


def test_check_shows_the_files_and_writes_none(run_action: Any, tmp_path: Path) -> None:
    run = export(run_action, tmp_path / "out", check=True)
    assert run.result["changed"] and not (tmp_path / "out").exists()
    assert "h/compose.yaml" in [one["after_header"] for one in run.result["diff"]]
    assert export(run_action, tmp_path / "out").result["written"] == run.result["written"]
    assert not export(run_action, tmp_path / "out").result["changed"]


def test_folder_has_what_was_planned(run_action: Any, tmp_path: Path) -> None:
    run = export(run_action, tmp_path / "out", host("h"), host("i"))
    assert run.result["servers"] == ["h/a", "i/a"]
    assert any(str(tmp_path / "out") in line for line in run.lines)
    service = yaml.safe_load((tmp_path / "out/i/compose.yaml").read_text())["services"]["a"]
    assert service["volumes"][0]["source"] == "/models" and "&id" not in (tmp_path / "out/i/compose.yaml").read_text()


def test_bill_of_materials_has_what_scan_and_runtime_have_found(run_action: Any, tmp_path: Path) -> None:
    model = {"id": "a", "kind": "model", "path": "/models/a.gguf", "files": ["/models/a.gguf"], "sha256": ["01" * 32]}
    scan = {"llama_registry": {"scan_paths": ["/models"], "models": [model], "companions": []}}
    runtime = {"version": "0.7.0", "build": 11669, "sha256": "ab" * 32}
    found = host(
        "h",
        __registry_scan={"ansible_facts": scan},
        __runtime_provided={"ansible_facts": {"llama_runtime": runtime}},
    )
    export(run_action, tmp_path / "out", found, format="cyclonedx")
    components = json.loads((tmp_path / "out/bom.json").read_text())["components"]
    assert [one["hashes"][0]["content"] for one in components] == ["ab" * 32, "01" * 32]


@pytest.mark.parametrize("broken", [{"__playbook_failure": {"task": "t", "error": "e"}}, {"__servers_planned": {}}])
def test_host_without_a_plan_keeps_all_from_being_written(
    run_action: Any, tmp_path: Path, broken: dict[str, Any]
) -> None:
    with pytest.raises(AnsibleActionFail, match=r"^two could not be planned.*target\.$"):
        export(run_action, tmp_path / "out", host("one"), host("two", **broken))
    assert not (tmp_path / "out").exists()


def test_links_are_those_that_the_host_has_followed(run_action: Any, tmp_path: Path) -> None:
    linked = host("h", __export_links={"stdout_lines": ["/models/a.gguf", "/data/a.gguf", "/models", ""]})
    with pytest.raises(AnsibleActionFail, match=r"a link to /data/a\.gguf"):
        export(run_action, tmp_path / "out", linked)


def test_playbook_follows_links_and_says_nothing_of_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "real $x").write_text("")
    (tmp_path / "link").symlink_to("real $x")
    (play,) = yaml.safe_load((ROOT / "playbooks/export.yml").read_text())
    block = next(task["block"] for task in play["tasks"] if "block" in task)
    command = next(task for task in block if task.get("register") == "__export_links")["ansible.builtin.command"]
    paths = [f"{tmp_path}/link", f"{tmp_path}/none/x", f"{tmp_path}/real $x"]
    done = subprocess.run(command["argv"], input="\n".join(paths) + "\n", capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:-1] == [paths[0], paths[2], paths[1], "", paths[2], paths[2]]


def test_folder_of_something_else_is_named(run_action: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(AnsibleActionFail, match="export_dir"):
        export(run_action, tmp_path)


def test_formats_are_those_that_the_variable_accepts() -> None:
    assert load_spec()["variables"]["format"]["choices"] == list(FORMATS)
