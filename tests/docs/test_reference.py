# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference of playbooks must list the existing playbooks and the variables that they read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
REFERENCE = yaml.safe_load((ROOT / "meta/extra_vars.yml").read_text())
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
# Variables that a playbook reads in an expression that tests whether they are defined.
READ = re.compile(r"\b(?<!['.])([a-z][a-z_]+) (?:\| default\(|is (?:not )?defined)")
# A role's own variables are in its argument specs, and Ansible's in Ansible's documentation.
OTHERS = ("ansible_", "backup_", "runtime_", "registry_", "servers_", "lost", "inventory_dir", "role_path")


def files(path: Path) -> Iterator[Path]:
    """The file and every file that it imports."""
    yield path
    for task in walk(yaml.safe_load(path.read_text())):
        for key, arguments in task.items():
            if key.endswith((".import_role", ".include_role")):
                role = ROOT / "roles" / arguments["name"].rpartition(".")[2]
                yield from files(role / "tasks" / arguments.get("tasks_from", "main.yml"))
            elif key.endswith((".import_tasks", ".include_tasks")):
                name = arguments["file"] if isinstance(arguments, dict) else arguments
                # A name that depends on the host is a pattern here.
                for tasks in path.parent.glob(re.sub(r"{{.*}}", "*", name)):
                    yield from files(tasks)
            elif key.endswith(".import_playbook"):
                yield from files(path.parent / arguments)


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


def test_playbooks_are_all_described() -> None:
    assert sorted(REFERENCE["playbooks"]) == PLAYBOOKS


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_playbook_variables_are_those_that_it_reads(playbook: str) -> None:
    text = "\n".join(path.read_text() for path in files(ROOT / f"playbooks/{playbook}.yml"))
    listed = REFERENCE["variables"]
    own = {name for name in READ.findall(text) if name in listed or not name.startswith(OTHERS)}
    # What playbook_begin has read.
    own |= set(re.findall(r"\b__llama_begun\.(\w+)", text)) & set(listed)
    # Read without a default.
    own |= {name for name in REFERENCE["playbooks"][playbook].get("required", ()) if f" {name} | " in text}
    # A variable of the play itself has the prefix of the role whose servers it takes in batches.
    own |= {"servers_serial"} if "{{ servers_serial |" in text else set()
    # Read by a variable of the role servers.
    own |= {"servers"} if "__servers_named" in text else set()
    # Read by a default of the role servers.
    own |= {"profile"} if "servers_profile }}" in text else set()
    # A plan that was approved before a restore is none after it.
    own -= {"apply"} if playbook == "restore" else set()
    assert set(REFERENCE["playbooks"][playbook]["variables"]) == own


def texts(value: Any) -> Iterator[str]:
    """Every text in a document that is a template, conditions as such."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("when", "that", "failed_when", "changed_when"):
                conditions = inner if isinstance(inner, list) else [inner]
                # A loop's conditions are templates already.
                yield from (one if "{{" in str(one) else f"{{{{ {one} }}}}" for one in conditions)
            else:
                yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_variables_without_a_role_default_are_in_the_reference() -> None:
    """What the form in which a playbook or a role's task reads them."""
    environment = jinja2.Environment()
    paths = [*(ROOT / "playbooks").rglob("*.yml"), *(ROOT / "roles").glob("*/*/*.yml")]
    paths = [path for path in paths if path.parent.name in ("playbooks", "tasks", "handlers", "defaults", "vars")]
    used, known = set(), set()
    for path in paths:
        document = yaml.safe_load(path.read_text())
        if path.parent.name in ("defaults", "vars"):
            known |= set(document)
        for mapping in walk(document):
            known |= set(mapping.get("vars", {})) | {mapping.get("register"), mapping.get("loop_var")}
            known |= set(mapping.get("ansible.builtin.set_fact", {}))
        for text in texts(document):
            used |= {node.name for node in environment.parse(text).find_all(jinja2.nodes.Name)}
    ansible = {
        "dict",
        "groups",
        "hostvars",
        "inventory_dir",
        "inventory_hostname",
        "item",
        "lookup",
        "omit",
        "range",
        "role_path",
        "undef",
    }
    own = {name for name in used - known - ansible if not name.startswith("ansible_")}
    assert own == set(REFERENCE["variables"])


def test_variables_of_roles_are_described_as_for_roles() -> None:
    """Where an entry point of a role has the variable too, both must say the same."""
    specs = yaml.safe_load((ROOT / "roles/servers/meta/argument_specs.yml").read_text())["argument_specs"]
    roles = {name: option for spec in specs.values() for name, option in spec["options"].items()}
    shared = set(roles) & set(REFERENCE["variables"])
    assert shared == {"servers", "verify_api_key", "verify_from", "verify_timeout", "rollback_keep_binary"}
    for name in shared:
        both = [
            {key: option.get(key) for key in ("type", "default")}
            for option in (roles[name], REFERENCE["variables"][name])
        ]
        assert both[0] == both[1], name
        texts_of = [
            re.sub(r"[CV]\(([^)]*)\)", r"`\1`", option["description"])
            for option in (roles[name], REFERENCE["variables"][name])
        ]
        assert texts_of[0] == texts_of[1], name


def test_variables_all_belong_to_a_playbook() -> None:
    used = {name for playbook in REFERENCE["playbooks"].values() for name in playbook["variables"]}
    assert used == set(REFERENCE["variables"])


def test_the_state_files_that_the_architecture_names_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([a-z.]+\.(?:json|lock))` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    files = [path for path in (ROOT / "plugins/module_utils").rglob("*.py") if path.stem != "version_1"]
    code = "\n".join(path.read_text() for path in files)
    written = set(re.findall(r'os\.path\.join\((?:self\.)?state_dir, "([a-z.]+\.(?:json|lock))"\)', code))
    # The registry has a variable of its own; ready.json is read once, to be replaced.
    assert set(rows) - {"registry.json"} == written - {"ready.json"}
