# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read YAML files of the user on the controller; an error names the file and the line in its own text.

Ansible shows the place on the screen only; msg is all that a document or a callback has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.signatures import verified_copy

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Numbers of YAML 1.1 that are not those of their digits: 010 is 8, and 1:30 is 90.
OCTAL = re.compile(r"[-+]?0[0-7_]+")
BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# Values that aliases may add to those written in a file: aliases of aliases grow without bound when they are copied.
MAX_ADDED = 10_000


def load_yaml(loader: DataLoader, path: str, what: str, **options: Any) -> Any:
    """The content of a file; what it is comes first in an error. Raises AnsibleActionFail."""
    try:
        _refuse_growth(loader.get_text_file_contents(path), path, what)
        return loader.load_from_file(path, cache="none", **options)
    except AnsibleError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise AnsibleActionFail(f"{what} ({path}{line}): {error}") from error


def _refuse_growth(text: str, path: str, what: str) -> None:
    """Raise AnsibleActionFail where aliases stand for too many values; to be called before anything is built."""
    if "&" not in text:
        return
    try:
        root = yaml.compose(text.encode(), Loader=LOADER)
    except yaml.YAMLError:
        # Loading it fails with a better message.
        return
    if root is not None and _is_grown(root):
        raise AnsibleActionFail(
            f"{what} ({path}): its aliases (*name) stand for more than {MAX_ADDED} values besides those that are "
            "written: write out what is needed in place of aliases of aliases."
        )


def _is_grown(root: yaml.Node) -> bool:
    """Whether the aliases of a file, expanded, add more than MAX_ADDED nodes to its own, or contain themselves."""
    # With aliases expanded; None while a node's own parts are counted. An alias is the same node again.
    sizes: dict[int, int | None] = {}
    todo: list[tuple[yaml.Node, bool]] = [(root, False)]
    while todo:
        node, are_parts_counted = todo.pop()
        inner = list(node.value) if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        if are_parts_counted:
            sizes[id(node)] = 1 + sum(sizes[id(part)] or 0 for part in inner)
        elif id(node) not in sizes:
            sizes[id(node)] = None
            todo += [(node, True), *((part, False) for part in inner)]
        elif sizes[id(node)] is None:
            return True
    return (sizes[id(root)] or 0) - len(sizes) > MAX_ADDED


def misread_numbers(loader: DataLoader, path: str) -> list[str]:
    """Return a warning for each plain number of a file that YAML does not read in decimal. The file is valid YAML."""
    # The parser in C refuses Ansible's own kind of text.
    text = loader.get_text_file_contents(path).encode()
    found = {}
    for key, node in _plain_numbers(yaml.compose(text, Loader=LOADER)):
        value = yaml.constructor.SafeConstructor().construct_object(node)
        base = "an octal number" if OCTAL.fullmatch(node.value) else "a number to base 60"
        if base == "a number to base 60" or value != int(node.value.replace("_", "")):
            found[node.start_mark.index] = (
                f"{path}, line {node.start_mark.line + 1}: {key} is {node.value}, which YAML reads as {base}: {value}. "
                "Quote it or write it in decimal."
            )
    return [found[index] for index in sorted(found)]


def _plain_numbers(root: yaml.Node | None) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Each unquoted number that may be misread, with where it is: parameters.ctx_size, enabled_models[0].port."""
    # An alias is the same node again.
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("the file", root)]
    while todo:
        key, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        prefix, inner = "" if node is root else key, []
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                inner += [(f"the key {name.value}", name), (f"{prefix}.{name.value}".lstrip("."), value)]
        elif isinstance(node, yaml.SequenceNode):
            inner = [(f"{prefix}[{index}]", value) for index, value in enumerate(node.value)]
        elif isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and not node.style:
            yield from [(key, node)] if OCTAL.fullmatch(node.value) or BASE_60.fullmatch(node.value) else []
        todo += reversed(inner)


def load_manifest(path: str, loader: DataLoader | None = None, public_key: str = "") -> dict[str, Any]:
    """The manifest at path; empty for an empty path. Raises AnsibleActionFail where it is not one.

    With a public key of minisign, also where its signature is missing or not valid; what is read is what was verified.
    """
    if path and public_key:
        with verified_copy(path, public_key) as copy:
            try:
                manifest = load_yaml(loader or DataLoader(), copy, "manifest")
            except AnsibleActionFail as error:
                # The file is the one that the reader knows, and not its copy.
                raise AnsibleActionFail(str(error).replace(copy, path)) from None
    else:
        manifest = load_yaml(loader or DataLoader(), path, "manifest") if path else {}
    if not isinstance(manifest, dict):
        advice = as_called("Write it with manifest.yml.")
        raise AnsibleActionFail(f"{path} is not a manifest: it contains no mapping. {advice}")
    return manifest
