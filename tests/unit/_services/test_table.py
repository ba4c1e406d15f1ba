# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service manager is one class and one entry in one table: a third one is used by every stage."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import Managed
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import validate
from ansible_collections.magi.llama.plugins.module_utils._services import table
from ansible_collections.magi.llama.plugins.module_utils._services.base import ServiceStatus, Stopped
from ansible_collections.magi.llama.plugins.module_utils._services.host_facts import host_facts
from ansible_collections.magi.llama.plugins.module_utils._services.manager import ServiceManager
from ansible_collections.magi.llama.plugins.modules import (
    gguf_registry,
    launch_configs,
    server_info,
    server_plan,
    server_state,
    teardown,
)
from support import gguf_files as make

ROOT = Path(__file__).parents[3]
NAMED = re.compile(rf"['\"]({'|'.join(table.MANAGERS)})['\"]")
LISTED = re.compile(r"^ *choices: \[([a-z, ]+)\]$", re.MULTILINE)


class Driver:
    """Records its calls, and runs nothing."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.calls: list[str] = []

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        return {name: ServiceStatus(name, "running" if name in self.running else "stopped") for name in names}

    def reload(self, names: Sequence[str]) -> None:
        self.calls.append("reload")

    def start(self, names: Sequence[str], on_started: Callable[[str], None]) -> dict[str, str]:
        self.calls.append("start")
        self.running.update(names)
        return {}

    def stop(self, names: Sequence[str], timeout: float) -> dict[str, Stopped]:
        self.running.difference_update(names)
        return {name: Stopped(name, 1, "SIGTERM", 0.1) for name in names}

    def forget(self, names: Sequence[str]) -> None:
        pass

    def log_tail(self, name: str, lines: int) -> list[str]:
        return [f"{name}: the last {lines} lines"]


class Pods(ServiceManager):
    name = "pods"
    template = "pods.server.j2"
    common_template = "pods.common.j2"

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def runs_here(self) -> bool:
        return True

    def config_path(self, state_dir: str, server: str) -> str:
        return f"{state_dir}/pods/{server}.pod"

    def common_config_path(self, state_dir: str) -> str:
        return f"{state_dir}/pods/all.network"

    def managed(self, state_dir: str) -> Managed:
        return Managed(f"{state_dir}/pods", "*.pod", "ours")

    def unsupervised(self, running: Mapping[str, Process], state_dir: str) -> dict[str, str]:
        return {}

    def driver(self, state_dir: str, program: str | None = None) -> Any:
        return self._driver

    def restart_triggers(self, stop_timeout: int) -> list[Any]:
        return ["pods", stop_timeout]

    def retire(self, state_dir: str, timeout: float) -> None:
        self._driver.calls.append("retire")

    def owned_paths(self, state_dir: str, names: Iterable[str], configs: Sequence[str]) -> list[str]:
        return [self.common_config_path(state_dir)]

    def folders(self, state_dir: str) -> list[str]:
        return [f"{state_dir}/pods"]

    def end(self, state_dir: str, paths: Sequence[str], timeout: float) -> list[Stopped]:
        return list(self._driver.stop(sorted(self._driver.running), timeout).values())


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(table.MANAGERS, "pods", lambda: Pods(driver))
    # The choices are read from the table when a module is loaded.
    for module in (server_plan, launch_configs):
        path = ROOT / f"plugins/module_utils/_arguments/{Path(module.__file__).name}"
        name = f"ansible_collections.magi.llama.plugins.module_utils._arguments.{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
        monkeypatch.setattr(module, "ARGUMENTS", fresh.ARGUMENTS)
    return driver


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def call(module: Any, **arguments: Any) -> dict[str, Any]:
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert not result.get("failed"), result
        return result

    return call


def test_third_manager_is_used_by_every_stage(
    tmp_path: Path, driver: Driver, run: Callable[..., dict[str, Any]]
) -> None:
    state, registry = str(tmp_path / "state"), str(tmp_path / "state/registry.json")
    make.small_model(tmp_path / "models/a.gguf")
    run(gguf_registry, scan_paths=[str(tmp_path / "models")], registry_path=registry)
    planned = run(
        server_plan,
        registry_path=registry,
        profile=validate("p", "p.yml", {"enabled_models": ["a"]}),
        runtime={"path": "/bin/llama-server", "flags": {}, "identity": "x"},
        state_dir=state,
        service_manager="pods",
    )
    plan = planned["ansible_facts"]["llama_plan"]
    configs = [
        {"path": f"{state}/pods/a.pod", "content": "ours\n"},
        {"path": f"{state}/pods/all.network", "content": "x\n"},
    ]
    written = run(launch_configs, service_manager="pods", state_dir=state, plan=plan, _filled_in={"configs": configs})[
        "written"
    ]
    assert {config["path"] for config in configs} < set(written)
    assert run(server_state, state_dir=state, state="started")["servers"][0]["action"] == "start"
    assert driver.calls == ["reload", "start"]
    assert driver.running == {"a"}
    (seen,) = run(server_info, state_dir=state)["status"]["servers"]
    assert seen["state"] != "stopped" and "log" not in seen
    for names in (["a"], ["all"]):
        (seen,) = run(server_info, state_dir=state, log_of=names)["status"]["servers"]
        assert seen["log"] == ["a: the last 100 lines"]
    (seen,) = run(server_info, state_dir=state, log_of=["b"])["status"]["servers"]
    assert "log" not in seen
    assert run(teardown, state_dir=state, registry_path=registry)["ended"] == {"a": "SIGTERM"}
    assert not Path(state).exists()


def test_third_manager_has_its_own_restart_triggers(
    tmp_path: Path, driver: Driver, run: Callable[..., dict[str, Any]]
) -> None:
    registry = str(tmp_path / "registry.json")
    make.small_model(tmp_path / "models/a.gguf")
    run(gguf_registry, scan_paths=[str(tmp_path / "models")], registry_path=registry)

    def revision(manager: str, stop_timeout: int) -> str:
        planned = run(
            server_plan,
            registry_path=registry,
            profile=validate("p", "p.yml", {"enabled_models": ["a"]}),
            runtime={"path": "/bin/llama-server", "flags": {}, "identity": "x"},
            state_dir=str(tmp_path),
            service_manager=manager,
            stop_timeout=stop_timeout,
        )
        return planned["ansible_facts"]["llama_plan"]["servers"][0]["revision"]

    assert revision("pods", 30) != revision("pods", 31)
    assert revision("systemd", 30) == revision("systemd", 31)


def test_previous_manager_is_retired(driver: Driver, tmp_path: Path) -> None:
    table.retire_others({"service_manager": "pods", "servers": []}, str(tmp_path))
    assert driver.calls == []
    table.retire_others({"service_manager": "supervisor", "servers": []}, str(tmp_path))
    assert driver.calls == ["retire"]
    table.retire_others({"service_manager": None, "servers": []}, str(tmp_path))
    assert driver.calls == ["retire"]


def test_unknown_manager_is_an_error_with_known_managers() -> None:
    with pytest.raises(
        table.UnknownManagerError, match=f"'upstart'; this collection knows: {', '.join(table.MANAGERS)}"
    ):
        table.find_manager("upstart")


@pytest.mark.parametrize("name", table.MANAGERS)
def test_managers_all_have_templates_and_install_tasks(name: str) -> None:
    manager = table.find_manager(name)
    role = ROOT / "roles/servers"
    assert manager.name == name
    assert (role / "templates" / manager.template).is_file()
    assert (role / "templates" / manager.common_template).is_file()
    if manager.is_missing({"supervisord": None}):
        assert (role / f"tasks/install_{name}.yml").is_file()


def test_manager_names_occur_only_in_table() -> None:
    own = {*(f"{name}.py" for name in table.MANAGERS), "table.py"}
    files = [path for folder in ("plugins", "roles", "playbooks") for path in (ROOT / folder).rglob("*")]
    # These run as units and nothing else.
    units = (ROOT / "roles/console", ROOT / "roles/monitoring", ROOT / "roles/redis")
    files = [path for path in files if not any(path.is_relative_to(role) for role in units)]
    named = {path.name for path in files if path.suffix in (".py", ".yml", ".j2") and NAMED.search(path.read_text())}
    assert named <= own


def lists_of_managers() -> dict[str, list[list[str]]]:
    """The choices in static documentation that name a manager, by file."""
    found = {}
    for folder in ("plugins/modules", "plugins/doc_fragments", "roles", "meta"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yml"):
                listed = [match[1].split(", ") for match in LISTED.finditer(path.read_text())]
                listed = [choices for choices in listed if set(choices) & set(table.MANAGERS)]
                found.update({str(path.relative_to(ROOT)): listed} if listed else {})
    return found


@pytest.mark.parametrize("path", lists_of_managers())
def test_documentation_lists_the_managers_of_the_table(path: str) -> None:
    for choices in lists_of_managers()[path]:
        expected = list(table.CHOICES if "auto" in choices else table.MANAGERS)
        assert choices == expected, f"{path}: choices of the service manager must be [{', '.join(expected)}]"


def test_contributing_names_the_files_that_list_the_managers() -> None:
    [section] = re.findall(r"\n## A service manager\n(.*?)\n## ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    named = re.findall(r"`((?:plugins/modules|roles)/[^`]+\.(?:py|yml))`", section)
    assert sorted(named) == sorted(lists_of_managers())


def test_third_manager_names_its_own_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Program(Pods):
        program = "podd"

        def facts(self, state_dir: str, candidates: Iterable[str | None]) -> dict[str, Any]:
            return {"podd": list(candidates)}

    monkeypatch.setattr(table, "MANAGERS", {"pods": lambda: Program(Driver())})
    given = {
        "state_dir": str(tmp_path),
        "service_manager": "auto",
        "user": "root",
        "supervisord_path": "/x/supervisord",
    }
    assert host_facts(given, "/found/{}".format)["podd"] == [None, "/found/podd"]
    assert host_facts({**given, "podd_path": "/given"}, "/found/{}".format)["podd"] == ["/given", "/found/podd"]


def test_driver_of_a_host_without_deployment_does_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    first = type(table.driver_for({"service_manager": None}, "/none"))
    monkeypatch.setattr(table, "MANAGERS", {**table.MANAGERS, "pods": lambda: Pods(Driver())})
    assert type(table.driver_for({"service_manager": None}, "/none")) is first
