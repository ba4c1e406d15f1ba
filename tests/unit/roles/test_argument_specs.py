# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's argument specs are its documentation: they must match its defaults and its tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.action.check_variables import variable_errors
from ansible_collections.magi.llama.plugins.module_utils._arguments.runtime import ARGUMENTS as RUNTIME
from ansible_collections.magi.llama.plugins.module_utils._services.table import CHOICES

ROOT = Path(__file__).parents[3]
ROLES = sorted((ROOT / "roles").iterdir())
PLAYBOOKS = sorted((ROOT / "playbooks").rglob("*.yml"))
PREFIXES = (
    "runtime",
    "registry",
    "servers",
    "verify",
    "rollback",
    "rollout",
    "gateway",
    "console",
    "redis",
    "monitoring",
    "backup",
)
VARIABLE = re.compile(
    rf"(?<![\w.'/-])({'|'.join(PREFIXES)})_[a-z_0-9]+\b(?!\s*[:=])|(?<![\w.'/-])(servers|output|output_file) \|"
)
INTERNAL = re.compile(r"\b__[a-z_]+")


def is_literal(value: object) -> bool:
    return "{{" not in str(value)


def specs_of(role: Path) -> dict[str, Any]:
    specs: dict[str, Any] = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    return specs


def entry_points() -> list[tuple[str, str]]:
    """Role and entry point of every import_role in a playbook."""
    found = set()
    for path in PLAYBOOKS:
        for match in re.finditer(
            r"_role:\n\s+name: magi\.llama\.(\w+)\n(?:\s+tasks_from: (\w+)\.yml)?", path.read_text()
        ):
            found.add((match[1], match[2] or "main"))
    return sorted(found)


def text_of(role: Path, tasks: str) -> str:
    """The tasks of an entry point, including imported tasks, notified handlers and templates."""
    text = (role / f"tasks/{tasks}.yml").read_text()
    for name in re.findall(r"_tasks: (\w+)\.yml", text):
        text += text_of(role, name)
    if "install_{{" in text:
        text += "".join(path.read_text() for path in (role / "tasks").glob("install_*.yml"))
    if "notify:" in text:
        text += (role / "handlers/main.yml").read_text()
    if "launch_configs:" in text:
        text += "".join(path.read_text() for path in (role / "templates").glob("*.j2"))
    return text


def variables_of(role: Path, tasks: str) -> set[str]:
    text = text_of(role, tasks)
    path = role / "vars/main.yml"
    internal = yaml.safe_load(path.read_text()) if path.exists() else {}
    while True:
        more = sorted(set(INTERNAL.findall(text)) & set(internal))
        if not more:
            break
        text += "".join(str(internal.pop(name)) for name in more)
    # Comments and parameter names are not variables.
    text = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    return {match[0].removesuffix(" |") for match in VARIABLE.finditer(text)}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_specs_and_defaults_agree(role: Path) -> None:
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    options = specs_of(role)["main"]["options"]
    assert set(defaults) == set(options)
    # A default in a spec is never null.
    literal = {name: value for name, value in defaults.items() if value is not None and is_literal(value)}
    assert literal == {name: option["default"] for name, option in options.items() if "default" in option}


@pytest.mark.parametrize(("role", "entry_point"), entry_points())
def test_entry_point_of_playbook_specifies_its_variables(role: str, entry_point: str) -> None:
    folder = ROOT / "roles" / role
    used = variables_of(folder, entry_point)
    if entry_point in ("preflight", "check"):
        # They validate what others use.
        assert specs_of(folder)[entry_point]["options"] == specs_of(folder)["main"]["options"]
    elif entry_point == "main":
        used = {name for name in used if name.startswith(f"{role}_")}
        assert used <= set(specs_of(folder)["main"]["options"])
    else:
        assert used == set(specs_of(folder)[entry_point]["options"])


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_option_of_several_entry_points_is_defined_once(role: Path) -> None:
    first: dict[str, Any] = {}
    for spec in specs_of(role).values():
        for name, option in spec["options"].items():
            # An alias of a YAML anchor is the same object.
            assert first.setdefault(name, option) is option


def test_choices_are_those_of_the_code() -> None:
    servers, runtime = (specs_of(ROOT / "roles" / role)["main"]["options"] for role in ("servers", "runtime"))
    assert servers["servers_service_manager"]["choices"] == list(CHOICES)
    assert runtime["runtime_install_method"]["choices"] == RUNTIME.options["method"]["choices"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_inputs_all_have_comments(role: Path) -> None:
    lines = (role / "defaults" / "main.yml").read_text().splitlines()
    for before, line in zip(lines, lines[1:]):
        if line and line[0].isalpha():
            assert before.startswith("#"), f"{role.name}: {line} has no comment above it"


def test_errors_name_variable_value_and_choices() -> None:
    options = {role.name: specs_of(role)["main"]["options"] for role in ROLES}
    policy = variable_errors(options["servers"], {"servers_numa_policy": "strict", "servers_cpu_weight": "0"})
    assert "servers_numa_policy must be one of: , default, preferred, bind, interleave, local, got: strict" in policy[0]
    assert policy[1] == "servers_cpu_weight is 0: set it to a whole number from 1 to 10000."
    given = {"servers_cpu_weight": "abc", "servers_service_manager": "upstart", "servers_user_groups": {"a": 1}}
    wrong = variable_errors(options["servers"], given)
    weight, manager, groups = (next(error for error in wrong if name in error) for name in given)
    assert "abc" in weight and "int" in weight
    assert manager == f"Value of servers_service_manager must be one of: {', '.join(CHOICES)}, got: upstart."
    assert "servers_user_groups" in groups and len(wrong) == 3
    assert "registry_force" in variable_errors(options["registry"], {"registry_force": "perhaps"})[0]
    assert variable_errors(options["runtime"], {"runtime_portable_mirror": None, "runtime_upgrade": "yes"}) == []


@pytest.mark.parametrize(
    "path", [path for path in PLAYBOOKS if path.parent.name == "playbooks"], ids=lambda path: path.stem
)
def test_playbooks_all_check_the_variables_of_their_roles(path: Path) -> None:
    """In a task of their own, or in the entry point that they run first."""
    text = path.read_text()
    for name in re.findall(r"_tasks: (tasks/\w+\.yml)", text):
        text += (path.parent / name).read_text()
    for role, tasks in re.findall(r"_role:\n\s+name: magi\.llama\.(\w+)\n(?:\s+tasks_from: (\w+)\.yml)?", text):
        text += text_of(ROOT / "roles" / role, tasks or "main")
    # One that has no role has no variables of roles.
    assert "magi.llama.check_variables:" in text or "_role:" not in text
