# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of every module are one constant that matches its documentation; modules contain no logic."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.doc_fragments import backup, downtime, lock
from ansible_collections.magi.llama.plugins.module_utils._archive.state import RECORD, StateFile, packed
from ansible_collections.magi.llama.plugins.module_utils._arguments.answers import ANSWERS, FACTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import (
    FILLED_IN,
    Arguments,
    fill_in,
    on_controller,
)
from ansible_collections.magi.llama.plugins.modules import restore, run_lock, server_state

PLUGINS = Path(__file__).parents[3] / "plugins"
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))
GLUE = [*sorted((PLUGINS / "modules").glob("*.py")), *sorted((PLUGINS / "action").glob("*.py"))]


def arguments_of(module: str) -> Arguments:
    name = f"ansible_collections.magi.llama.plugins.module_utils._arguments.{module}"
    return importlib.import_module(name).ARGUMENTS


def documentation_of(module: str, part: str = "DOCUMENTATION") -> dict[str, Any]:
    tree = ast.parse((PLUGINS / f"modules/{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == part:
            return yaml.safe_load(ast.literal_eval(node.value)) or {}
    raise AssertionError(f"{module} has no documentation")


def documented_options(module: str) -> dict[str, Any]:
    documentation = documentation_of(module)
    options = dict(documentation.get("options", {}))
    for name, fragment in (("lock", lock), ("downtime", downtime), ("backup", backup)):
        if f"magi.llama.{name}" in documentation["extends_documentation_fragment"]:
            options.update(yaml.safe_load(fragment.ModuleDocFragment.DOCUMENTATION)["options"])
    return options


def comparable(options: dict[str, Any]) -> dict[str, Any]:
    keys = ("type", "elements", "choices", "default", "required")
    return {name: {key: option[key] for key in keys if key in option} for name, option in options.items()}


@pytest.mark.parametrize("module", MODULES)
def test_documentation_matches_arguments(module: str) -> None:
    assert comparable(documented_options(module)) == comparable(dict(arguments_of(module).options))


@pytest.mark.parametrize("module", sorted(ANSWERS))
def test_documented_answer_is_what_the_controller_takes(module: str) -> None:
    documented = documentation_of(module, "RETURN")
    facts = documented.pop("ansible_facts", {}).get("contains", {})
    assert set(FACTS.get(module, {})) == set(facts)
    taken = {*ANSWERS[module].required, *ANSWERS[module].optional}
    own_to_the_action = {
        "backup": {"path", "removed"},
        "restore": {"taken_at"},
        "verify": {"servers"},
        "gateway_state": {"refused"},
        "gateway_verify": {"url", "models"},
        "launch_configs": {"configs", "drift"},
    }
    assert set(documented) - {"changed", "msg"} - own_to_the_action.get(module, set()) <= taken


@pytest.mark.parametrize("module", MODULES)
def test_internal_arguments_are_not_documented(module: str) -> None:
    filled_in = arguments_of(module).filled_in
    assert not set(filled_in) & set(documented_options(module))
    if filled_in:
        action = (PLUGINS / f"action/{module}.py").read_text()
        assert "fill_in" in action or "acquire_with_wait" in action or "wait_in_slices" in action


@pytest.mark.parametrize("path", GLUE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_modules_and_action_plugins_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.name in ("main", "run")}
    assert lengths or path.stem in (
        # Their base class has it.
        *("host_facts", "runtime", "server_info", "teardown"),
        "approved_plan",
        "check_variables",
        "export",
        "import_servers",
        "playbook_begin",
        "playbook_finish",
        "profile",
        "report",
        "rollout",
        "sign_manifest",
    )
    assert {name: length for name, length in lengths.items() if length > 50} == {}


@pytest.mark.parametrize("path", GLUE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_modules_and_action_plugins_use_the_constant(path: Path) -> None:
    text = path.read_text()
    assert "argument_spec=" not in text
    assert "AnsibleModule(" not in text


def test_internal_arguments_are_merged() -> None:
    arguments = fill_in(fill_in({"state_dir": "/s"}, run_id="a"), slice=2.5)
    assert arguments == {"state_dir": "/s", "_filled_in": {"run_id": "a", "slice": 2.5}}


def test_host_paths_are_not_expanded() -> None:
    options = on_controller(
        {
            "state_dir": {"type": "path", "required": True},
            "api_key_file": {"type": "path"},
            "folders": {"type": "list", "elements": "path"},
            "files": {"type": "list", "elements": "dict", "options": {"path": {"type": "path"}}},
        }
    )
    assert options["state_dir"] == {"type": "str", "required": True, "no_log": False}
    assert options["api_key_file"]["no_log"] is False
    assert options["folders"]["elements"] == "str"
    assert options["files"]["options"]["path"]["type"] == "str"


def failure(capsys: pytest.CaptureFixture[str], module: Any, **arguments: Any) -> str:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    return capsys.readouterr().out


def test_internal_argument_as_option_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = failure(capsys, server_state, state_dir=str(tmp_path), state="started", run_id="mine")
    assert "Unsupported parameters" in refused and "run_id" in refused


def test_internal_arguments_are_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "call the module from a playbook" in failure(capsys, run_lock, state_dir=str(tmp_path))
    wrong = {"run": "no mapping"}
    assert "call the module from a playbook" in failure(capsys, run_lock, state_dir=str(tmp_path), _filled_in=wrong)


@pytest.mark.parametrize("count", [1, 2], ids=["succeeds", "fails"])
def test_internal_arguments_are_not_in_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    files = packed([StateFile(RECORD, b"{}")] * count)
    given = {"state_dir": str(tmp_path), "at": "latest", FILLED_IN: {"run_id": "mine", "files": files}}
    answer = json.loads(failure(capsys, restore, _ansible_inject_invocation=True, _ansible_check_mode=True, **given))
    assert answer.get("failed", False) is (count == 2)
    assert set(answer["invocation"]["module_args"]) == set(arguments_of("restore").options)
