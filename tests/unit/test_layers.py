# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages of module_utils: imports point downwards, without cycles, and every file is used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
MODULE_UTILS = PLUGINS / "module_utils"
# From the bottom up: a package may import those listed above it.
LAYERS = (
    "_core",
    "_models",
    "_runtime",
    "_plan",
    "_launch",
    "_services",
    "_health",
    "_deployment",
    "_watchdog",
    "_gateway",
    "_monitoring",
    "_distribution",
    "_export",
    "_archive",
    "_import",
    "_output",
    "_arguments",
)
PREFIX = ("ansible_collections", "magi", "llama", "plugins", "module_utils")
FILES = sorted(MODULE_UTILS.rglob("*.py"))
ROOT = PLUGINS.parent
CODE = sorted([*PLUGINS.rglob("*.py"), *(ROOT / "tools").glob("*.py"), *(ROOT / "docs").glob("*.py")])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(MODULE_UTILS).with_suffix("").parts)


NAMES = {name_of(path) for path in FILES}


def imported(path: Path, *, at_load: bool = False) -> set[str]:
    """The files of module_utils that a file imports; with at_load only its top-level imports."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if not at_load else iter(tree.body)
    found = set()
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            parts = (*path.relative_to(MODULE_UTILS).parent.parts[: 1 - node.level or None], *parts)
        elif parts[: len(PREFIX)] == PREFIX:
            parts = parts[len(PREFIX) :]
        else:
            continue
        module = ".".join(parts)
        found |= {module} if module in NAMES else {f"{module}.{alias.name}" for alias in node.names} & NAMES
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    own = LAYERS.index(name_of(path).split(".")[0])
    upwards = {name for name in imported(path) if LAYERS.index(name.split(".")[0]) > own}
    assert upwards == set()


def test_imports_have_no_cycle() -> None:
    below = {name_of(path): imported(path, at_load=True) for path in FILES}
    while True:
        leaves = {name for name, needs in below.items() if not needs}
        if not leaves:
            break
        below = {name: needs - leaves for name, needs in below.items() if name not in leaves}
    assert below == {}


def test_files_are_all_used() -> None:
    users = [*FILES, *(PLUGINS / "modules").glob("*.py"), *(PLUGINS / "action").glob("*.py")]
    users += [*(PLUGINS / "filter").glob("*.py"), *(PLUGINS / "plugin_utils").glob("*.py")]
    used = {name for path in users for name in imported_from(path)}
    assert NAMES - used == set()


def imported_from(path: Path) -> set[str]:
    if MODULE_UTILS in path.parents:
        return imported(path)
    tree = ast.parse(path.read_text())
    modules = [
        (node.module or "").split(".") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
    ]
    found = {".".join(parts[len(PREFIX) :]) for parts in modules if tuple(parts[: len(PREFIX)]) == PREFIX}
    names = {
        f"{'.'.join((node.module or '').split('.')[len(PREFIX) :])}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return (found | names) & NAMES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_private_and_within_size_limit(path: Path) -> None:
    text = path.read_text()
    assert "PRIVATE to the collection" in text.splitlines()[3]
    assert len(text.splitlines()) <= 400


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_within_size_limit(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
