# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that validates a profile with the collection's own loader; profiles.py runs it with Ansible's Python.

Standard input has {"name", "path", "text", "registries": {host: [models]}, "collections": [folders]} as JSON; the
answer is {"errors": [...], "warnings": [...], "selects": {host: [model ids]}, "missing": {host: [model ids]}}.

A profile may use templates, which run code on the controller. Users who may edit a profile in the console may not do
that, so a text with a template is refused, wherever it is in the file and however it is escaped.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TEMPLATES = ("{{", "{%", "{#")


def main() -> int:
    request = json.load(sys.stdin)
    sys.path[:0] = [*request["collections"], *_collections()]
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder, f"{request['name']}.yml")
        staged.write_text(request["text"], encoding="utf-8")
        answer = check(request, str(staged))
    # The file is the one that the reader knows, and not its copy.
    json.dump(json.loads(json.dumps(answer).replace(json.dumps(str(staged))[1:-1], request["path"])), sys.stdout)
    return 0


def _collections() -> list[str]:
    from ansible import constants

    return [str(path) for path in constants.COLLECTIONS_PATHS]


def check(request: Mapping[str, Any], staged: str) -> dict[str, Any]:
    """What is wrong with the profile in the file staged, and what it selects of each registry."""
    from ansible.errors import AnsibleError
    from ansible.parsing.dataloader import DataLoader
    from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
    from ansible_collections.magi.llama.plugins.module_utils._plan.profile import select, validate
    from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_yaml, misread_numbers

    answer: dict[str, Any] = {"errors": [], "warnings": [], "selects": {}, "missing": {}}
    loader = DataLoader()
    try:
        content = load_yaml(loader, staged, f'profile "{request["name"]}"')
        answer["warnings"] = misread_numbers(loader, staged)
        if found := next(templates(content), None):
            message = f"{staged}: {found} is a template, which would run on the controller."
            answer["errors"] = [f"{message} Write its value, or edit the file itself."]
            return answer
        profile = validate(request["name"], staged, content)
    except (AnsibleError, MagiError) as error:
        answer["errors"] = [str(error)]
        return answer
    for host, models in request["registries"].items():
        selection = select(profile, models)
        answer["selects"][host] = [str(one.model["id"]) for one in selection.servers]
        answer["missing"][host] = sorted(selection.missing)
    return answer


def templates(value: Any, key: str = "the file") -> Iterator[str]:
    """The keys whose values are templates."""
    if isinstance(value, str):
        if any(mark in value for mark in TEMPLATES):
            yield key
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from templates(str(name), f"the key {str(name)!r}")
            yield from templates(inner, f"{key}.{name}".removeprefix("the file."))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from templates(inner, f"{key}[{index}]".removeprefix("the file."))


if __name__ == "__main__":
    sys.exit(main())
