# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""A program of module_utils as one file of Python: hosts have no copy of the collection."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "magi_llama"

_LOADER = '''

class Importer(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the modules of SOURCES."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in SOURCES:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=self.is_package(fullname))

    def is_package(self, fullname):
        return any(name.startswith(fullname + ".") for name in SOURCES)

    def get_source(self, fullname):
        return SOURCES[fullname]


sys.meta_path.insert(0, Importer())
sys.exit(importlib.import_module(ENTRY).main(sys.argv[1:]))
'''


def host_program(module: str, header: str) -> str:
    """The program that runs main(words) of a file of module_utils, by the name that it is imported with.

    header is a text that the program begins with, as a comment.
    """
    entry = ".".join(module.split(".")[-2:])
    needed = _needed(entry)
    sources = {"": "", **{name.rpartition(".")[0]: "" for name in needed}}
    sources.update({name: _path(name).read_text() for name in needed})
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    lines = [f"    {_full(name)!r}: {source!r},\n" for name, source in sorted(sources.items())]
    head = f"#!/usr/bin/env python3\n{comment}import importlib.abc\nimport importlib.util\nimport sys\n\n"
    return f"{head}ENTRY = {_full(entry)!r}\nSOURCES = {{\n{''.join(lines)}}}\n{_LOADER}"


def _full(name: str) -> str:
    return f"{PACKAGE}.{name}" if name else PACKAGE


def _path(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"


def _needed(entry: str) -> list[str]:
    """A file of module_utils, those that it imports, and those that these import, by name."""
    found: dict[str, None] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = None
            waiting += _imports(name)
    return sorted(found)


def _imports(name: str) -> list[str]:
    package = name.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(_path(name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            base = [part for part in base if part]
            names = [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
            found += [one for one in names if _path(one).is_file()]
    return found
