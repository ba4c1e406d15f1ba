# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The watchdog as one file that Python runs: its program with the files of module_utils that it imports.

A module that imports the program was sent with those files, so nothing else has to be brought to the host.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import zipfile
from collections.abc import Iterator

from . import program

# module_utils, and what it is called in the file: shorter, and never what a module on the host imports.
SOURCE = __name__.rpartition("._watchdog")[0]
PACKAGE = "magi_llama"
MAIN = f"""import sys

from {PACKAGE}.{program.__name__[len(SOURCE) + 1 :]} import main

sys.exit(main(sys.argv[1:]))
"""


def packed() -> bytes:
    """Return the file; the same sources make the same bytes. Raises ImportError where one is missing."""
    sources = needed_sources(program.__name__)
    files = {f"{PACKAGE}/{name[len(SOURCE) + 1 :].replace('.', '/')}.py": text for name, text in sources.items()}
    files.update({f"{folder}/__init__.py": "" for path in list(files) for folder in _folders(path)})
    files["__main__.py"] = MAIN
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, text in sorted(files.items()):
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)
    return stream.getvalue()


def needed_sources(name: str) -> dict[str, str]:
    """Return the text of a file of module_utils and of all that it imports from there, by full name."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = _source(one)
            waiting += _imports(one, found[one])
    return found


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    # Of a zip file, a folder, or an importer of another program: each has this.
    text = spec.loader.get_source(name) if spec and spec.loader and hasattr(spec.loader, "get_source") else None
    if text is None:
        raise ImportError(f"The source of {name} is not there.")
    return str(text)


def _imports(name: str, text: str) -> Iterator[str]:
    """Yield the full names of the files that a file imports, also in its functions; packages have no files."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = ".".join(name.split(".")[: -node.level])
            if node.module and not _is_package(f"{package}.{node.module}"):
                yield f"{package}.{node.module}"
            else:
                folder = f"{package}.{node.module}" if node.module else package
                yield from (f"{folder}.{alias.name}" for alias in node.names)


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def _folders(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
