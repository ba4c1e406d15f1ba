# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of the console keep the sizes of the rest, and it imports nothing of the collection."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "console/src/magi_llama_console"
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_within_size_limits(path: Path) -> None:
    text = path.read_text()
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert len(text.splitlines()) <= 400
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert {node.name for node in functions if len(node.args.args) + len(node.args.kwonlyargs) > 8} == set()


# A program of its own, which Ansible's Python runs: profiles are validated by the collection's own loader.
PROGRAMS = {PACKAGE / "fleet/profile_check.py"}


@pytest.mark.parametrize("path", sorted({*FILES} - PROGRAMS), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_of_the_collection_is_imported(path: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [one for one in map(ast.unparse, imports) if "ansible_collections" in one or "profile_check" in one] == []
