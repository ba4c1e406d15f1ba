# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference of playbooks must list the existing playbooks and the variables that they read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
REFERENCE = yaml.safe_load((ROOT / "docs/reference.yml").read_text())
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
# Variables that a playbook reads in an expression that tests whether they are defined.
READ = re.compile(r"\b(?<!['.])([a-z][a-z_]+) (?:\| default\(|is defined)")
# A role's own variables are in its argument specs, and Ansible's in Ansible's documentation.
OTHERS = ("ansible_", "runtime_", "registry_", "servers_", "lost", "inventory_dir", "role_path")


def files(path: Path) -> Iterator[Path]:
    """The file and every task file that it imports."""
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
    own = {name for name in READ.findall(text) if not name.startswith(OTHERS)}
    # Read by a default of the role servers.
    own |= {"profile"} if "servers_profile }}" in text else set()
    assert set(REFERENCE["playbooks"][playbook]["variables"]) == own


def test_variables_all_belong_to_a_playbook() -> None:
    used = {name for playbook in REFERENCE["playbooks"].values() for name in playbook["variables"]}
    assert used == set(REFERENCE["variables"])


def test_the_state_files_that_the_architecture_names_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([a-z.]+\.(?:json|lock))` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    files = [path for path in (ROOT / "plugins/module_utils").rglob("*.py") if path.stem != "version_1"]
    code = "\n".join(path.read_text() for path in files)
    written = set(re.findall(r'os\.path\.join\(state_dir, "([a-z.]+)"\)', code)) - {"ready.json"}
    # The registry has a variable of its own; ready.json is read once, to be replaced.
    assert set(rows) - {"registry.json"} == {name for name in written if "." in name}
