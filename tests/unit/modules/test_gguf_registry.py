# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module gguf_registry and its action plugin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.action import gguf_registry as action
from ansible_collections.magi.llama.plugins.module_utils._core import run_lock
from ansible_collections.magi.llama.plugins.modules import gguf_registry as module
from support import gguf_files as make

Runner = Callable[..., dict[str, Any]]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    make.small_model(tmp_path / "models/a.gguf")
    make.small_model(tmp_path / "models/sub/b-Q4_K_M.gguf", tensor_type=12, general__file_type=15)
    (tmp_path / "models/broken.gguf").write_bytes(b"GGUF")
    return tmp_path / "models"


@pytest.fixture
def run(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    warnings: list[str] = []
    # On the controller, Ansible shows a warning itself, only once.
    monkeypatch.setattr(module.Module, "warn", lambda _self, text: warnings.append(text))

    def call(*, check: bool = False, diff: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "scan_paths": [str(models)],
            "registry_path": str(tmp_path / "state/registry.json"),
            "_ansible_check_mode": check,
            "_ansible_diff": diff,
            **options,
        }
        warnings.clear()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return {**result, "warnings": list(warnings)}

    return call


def warnings_of(result: dict[str, Any]) -> str:
    return " ".join(result["warnings"])


@pytest.mark.parametrize("path", ["state", "missing/"])
def test_folder_as_registry_path_is_refused(run: Runner, tmp_path: Path, path: str) -> None:
    (tmp_path / "state").mkdir()
    result = run(registry_path=f"{tmp_path}/{path}")
    assert result["msg"].startswith(f"registry_path is the path of a file, but {tmp_path}/{path} is a folder. Nothing")
    assert f"such as {tmp_path}/{path.rstrip('/')}/registry.json" in result["msg"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["models", "state"]


def test_check_run_check_run(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "state/registry.json"
    first = run(check=True, diff=True)
    assert first["changed"] and not path.parent.exists()
    assert first["diff"]["before"] == ""
    assert first["diff"]["after"].splitlines()[1].split()[:2] == ["b-q4_k_m", "Q4"]
    assert "There is no registry" in warnings_of(first)
    second = run(diff=True)
    assert second["changed"]
    assert second["diff"] == first["diff"]
    assert second["msg"] == "2 models, 0 companions, 1 rejected"
    assert second["changes"]["added"] == ["a", "b-q4_k_m"]
    assert json.loads(path.read_bytes()) == second["ansible_facts"]["llama_registry"]
    for check in (True, False):
        again = run(check=check, diff=True)
        assert not again["changed"] and not warnings_of(again)
        assert again["diff"]["before"] == again["diff"]["after"]
        assert again["ansible_facts"] == second["ansible_facts"]
        assert again["progress"] == {"done": 3, "total": 3, "read": 0}


def test_changes_since_last_scan_are_reported(run: Runner, models: Path) -> None:
    run()
    (models / "a.gguf").unlink()
    make.small_model(models / "c.gguf")
    make.small_model(models / "sub/b-Q4_K_M.gguf", tensor_type=12, general__file_type=15, general__name="New")
    result = run()
    assert result["changes"] == {"added": ["c"], "removed": ["a"], "replaced": ["b-q4_k_m"]}


def test_errors_name_searched_folders(run: Runner, tmp_path: Path) -> None:
    result = run(scan_paths=["/none"])
    assert result["failed"] and "looked at: /none" in result["msg"]
    (tmp_path / "empty").mkdir()
    result = run(scan_paths=[str(tmp_path / "empty")])
    assert result["failed"] and f"no GGUF file in {tmp_path}/empty" in result["msg"]


def test_registry_damaged_is_a_warning(run: Runner, tmp_path: Path) -> None:
    first = run()
    (tmp_path / "state/registry.json").write_text("{")
    result = run()
    assert result["changed"] and "damaged" in warnings_of(result)
    assert result["ansible_facts"]["llama_registry"]["models"] == first["ansible_facts"]["llama_registry"]["models"]


@pytest.mark.parametrize("force", [False, True])
def test_scan_in_slices_is_complete(run: Runner, tmp_path: Path, force: bool) -> None:
    run()
    expected = (tmp_path / "state/registry.json").read_bytes()
    if not force:
        (tmp_path / "state/registry.json").unlink()
    options: dict[str, Any] = {"force": force, "time_limit": 0.0}
    calls = []
    for _ in range(10):
        calls.append(run(**options))
        if calls[-1]["complete"]:
            break
        assert "ansible_facts" not in calls[-1] and not calls[-1]["changed"]
        options["resume"] = calls[-1]["resume"]
    assert [call["progress"]["done"] for call in calls] == [1, 2, 3]
    assert calls[-1]["changed"] is not force
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["registry.json"]
    old, new = json.loads(expected), json.loads((tmp_path / "state/registry.json").read_bytes())
    assert {**old, "updated_at": ""} == {**new, "updated_at": ""}


def test_forced_scan_ignores_slices_of_other_scans(run: Runner) -> None:
    assert run(force=True, time_limit=0.0)["progress"]["done"] == 1
    assert run(force=True, time_limit=0.0)["progress"] == {"done": 1, "total": 3, "read": 1}
    # A scan without force continues there.
    assert run(time_limit=0.0)["progress"] == {"done": 2, "total": 3, "read": 1}


def test_scan_in_check_mode_has_no_slices(run: Runner, tmp_path: Path) -> None:
    assert run(check=True, time_limit=0.0)["complete"]
    assert not (tmp_path / "state").exists()


def test_fact_of_many_models_is_short(run: Runner, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = run()["ansible_facts"]["llama_registry"]["models"][0]
    assert "memory" in full
    assert "memory" not in run(fact="short")["ansible_facts"]["llama_registry"]["models"][0]
    monkeypatch.setattr(module, "SHORT_FROM", 2)
    assert "memory" not in run()["ansible_facts"]["llama_registry"]["models"][0]
    # In check mode the plan reads the file too, unless the scan would change it.
    assert "memory" not in run(check=True)["ansible_facts"]["llama_registry"]["models"][0]
    make.small_model(models / "new.gguf")
    for options in ({}, {"fact": "short"}):
        assert run(check=True, **options)["ansible_facts"]["llama_registry"]["models"][0] == full
    assert run(fact="full")["ansible_facts"]["llama_registry"]["models"][0] == full


def test_manifest_mismatch_is_reported(run: Runner, models: Path) -> None:
    manifest = run(checksums=True)["manifest"]
    assert run(manifest=manifest)["differences"] == {"differing": [], "missing": [], "unlisted": []}
    extra = make.small_model(models / "extra.gguf")
    result = run(manifest=manifest)
    assert not result.get("failed") and f"{extra} is not in the manifest" in warnings_of(result)
    result = run(manifest=manifest, manifest_strict=True)
    assert result["failed"] and f"{extra} is not in the manifest" in result["msg"]
    manifest["files"]["a.gguf"]["sha256"] = "0" * 64
    result = run(manifest=manifest)
    assert result["failed"] and f"{models}/a.gguf has the sha256" in result["msg"]
    assert run(manifest={"files": 1})["failed"]


def test_long_scan_renews_run_lock(run: Runner, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    mine, other = (run_lock.Run(name, "controller", "user", 1, "site.yml") for name in ("mine", "other"))
    run(state_dir=state, _filled_in={"run_id": "mine"})
    assert run_lock.holder(state) is None
    run_lock.acquire(state, mine, lease=60)
    run(state_dir=state, _filled_in={"run_id": "mine"}, check=True)
    run(state_dir=state)
    held = run_lock.holder(state)
    assert held and held.seconds_left <= 60
    run(state_dir=state, _filled_in={"run_id": "mine"}, time_limit=0.0)
    held = run_lock.holder(state)
    assert held and held.seconds_left > 60
    run_lock.release(state, "mine")
    run_lock.acquire(state, other)
    result = run(state_dir=state, _filled_in={"run_id": "mine"})
    assert result["failed"] and "Another run is changing this host" in result["msg"]


def test_scan_with_partial_file_removed_by_another_completes(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(time_limit=0.0)
    real = module.save

    def save(path: str, content: dict[str, Any]) -> None:
        real(path, content)
        (tmp_path / "state/registry.json.partial").unlink()

    monkeypatch.setattr(module, "save", save)
    assert run()["complete"]


# --- the action plugin -----------------------------------------------------------------------------------------------


class FakeAction(action.ActionModule):
    """The plugin with fake results of the module."""

    def __init__(self, arguments: dict[str, Any], answers: list[dict[str, Any]], **task: Any) -> None:
        values = {"args": arguments, "check_mode": False, "async_val": 0, **task}
        self._task = SimpleNamespace(**values)
        self.answers = answers
        self.calls: list[dict[str, Any]] = []

    def ask(self, _module: str, arguments: dict[str, Any], *_more: Any, **_options: Any) -> dict[str, Any]:
        self.calls.append(arguments)
        return self.answers[len(self.calls) - 1]

    def _find_needle(self, folder: str, name: str) -> str:
        assert folder == "files"
        return name


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(action.HostAction, "run", lambda *_arguments: {})
    monkeypatch.setattr(action.display, "display", lines.append)
    return lines


def part(done: int, **progress: int) -> dict[str, Any]:
    return {"complete": False, "progress": {"done": done, "total": 200, "read": 1, **progress}, "resume": "token"}


def test_quick_scan_is_one_call(shown: list[str]) -> None:
    plugin = FakeAction({"scan_paths": ["/m"]}, [{"complete": True, "changed": True}])
    assert plugin.run(None, {})["changed"]
    assert plugin.calls == [{"scan_paths": ["/m"], "time_limit": action.FIRST_SECONDS}]
    assert shown == []


def test_long_scan_shows_progress(shown: list[str]) -> None:
    sums = {"checksums_done": 3, "checksums_total": 8, "checksums_bytes": 12_000_000_000}
    answers = [part(120), part(200, **sums, checksums_total_bytes=40_000_000_000), {"complete": True, "changed": False}]
    plugin = FakeAction({"force": True}, answers)
    assert plugin.run(None, {"inventory_hostname": "node1"})["complete"]
    assert shown == ["node1: 120 of 200 files read", "node1: checksums of 3 of 8 files (12.0 of 40.0 GB)"]
    assert [call.get("resume") for call in plugin.calls] == [None, "token", "token"]


def test_module_gets_run_id(shown: list[str]) -> None:
    plugin = FakeAction({"state_dir": "/state"}, [part(1), {"complete": True}])
    plugin.run(None, {"inventory_hostname": "h"})
    assert [call["_filled_in"]["run_id"] for call in plugin.calls] == [action.this_run("h")["id"]] * 2


@pytest.mark.parametrize("task", [{"check_mode": True}, {"async_val": 60}])
def test_check_mode_and_async_are_one_call(shown: list[str], task: dict[str, Any]) -> None:
    plugin = FakeAction({}, [{"complete": True}], **task)
    plugin.run(None, {})
    assert plugin.calls == [{}]


def test_failure_stops_the_scan(shown: list[str]) -> None:
    plugin = FakeAction({}, [part(1), {"failed": True, "msg": "no"}])
    assert plugin.run(None, {})["failed"]
    assert len(plugin.calls) == 2


def loader_of(load: Any) -> SimpleNamespace:
    return SimpleNamespace(load_from_file=load, get_text_file_contents=lambda _name: "")


def test_manifest_is_read_on_controller(shown: list[str], tmp_path: Path) -> None:
    plugin = FakeAction({"manifest_file": "models.lock.yml"}, [{"complete": True}])
    plugin._loader = loader_of(lambda name, **_options: {"schema_version": 1, "files": {}})
    plugin.run(None, {})
    assert plugin.calls[0]["manifest"] == {"schema_version": 1, "files": {}}
    assert "manifest_file" not in plugin.calls[0]
    # A bare name is looked up next to the inventory first.
    (tmp_path / "models.lock.yml").touch()
    for name, found in (
        ("models.lock.yml", str(tmp_path / "models.lock.yml")),
        ("other.yml", "other.yml"),
        ("/m.yml", "/m.yml"),
    ):
        read: list[str] = []
        plugin = FakeAction({"manifest_file": name}, [{"complete": True}])
        plugin._loader = loader_of(lambda name, read=read, **_options: read.append(name) or {"files": {}})
        plugin.run(None, {"inventory_dir": str(tmp_path)})
        assert read == [found]
    plugin = FakeAction({"manifest_file": "models.lock.yml"}, [])
    plugin._loader = loader_of(lambda name, **_options: ["x"])
    with pytest.raises(action.AnsibleActionFail, match=r"models.lock.yml is not a manifest"):
        plugin.run(None, {})


# --- the documentation -----------------------------------------------------------------------------------------------


def test_record_keys_are_all_documented(run: Runner) -> None:
    registry = yaml.safe_load(module.RETURN)["ansible_facts"]["contains"]["llama_registry"]["contains"]
    content = run(checksums=True)["ansible_facts"]["llama_registry"]
    assert content.keys() == registry.keys()
    assert {key for model in content["models"] for key in model} == registry["models"]["contains"].keys()
