# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Names of variables: those that no spec has, and those that a playbook does not take, are errors.

A name that is ignored is a setting that someone believes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.parsing.splitter import parse_kv
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import misspelled, near
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import load_spec
from ansible_collections.magi.llama.plugins.plugin_utils.inputs import inputs_from_facts
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import LOADER

ROLES = Path(__file__).parents[2] / "roles"
# All names of variables that begin so are the collection's, also in an inventory.
OURS = re.compile(r"(servers|registry|runtime|rollout|rollback|verify|gateway|console|export)_\w*")
# With -e they are for this run, so these too.
# In an inventory, names that begin with redis_, models_, monitoring_ or backup_ may be those of another role.
OURS_IN_EXTRA_VARS = re.compile(rf"{OURS.pattern}|(output|fail_on)\w*|(redis|models|monitoring|backup)_\w*")


@cache
def known_names() -> frozenset[str]:
    """All variables of the collection: of the roles' argument specs and of meta/extra_vars.yml."""
    names = set(load_spec()["variables"])
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        loaded = yaml.load(path.read_text(encoding="utf-8"), LOADER)
        for entry_point in loaded["argument_specs"].values():
            names.update(entry_point["options"])
    return frozenset(names)


def extra_var_errors(names: Iterable[str]) -> list[str]:
    """Return an error for each extra variable that is none of ours and has a name like one."""
    return [
        f"{name} (given with -e) is not a variable of this collection{_suggestion(name)}"
        for name in names
        if name not in known_names() and (OURS_IN_EXTRA_VARS.fullmatch(name) or misspelled(name, _long_names()))
    ]


def _long_names() -> list[str]:
    """Variables that a name can be a misspelling of: any name of two letters is like at."""
    return [name for name in load_spec()["variables"] if len(name) > 3]


def host_var_errors(hosts: Mapping[str, Mapping[str, Any]], extra_vars: Iterable[str]) -> list[str]:
    """Return an error for each variable of a host, from its inventory, that is none of ours and has a name like one."""
    left_out = known_names() | set(extra_vars)
    found: dict[str, list[str]] = {}
    for host, host_vars in hosts.items():
        names = {str(name) for name in host_vars if OURS.fullmatch(str(name))} - left_out
        # A host with such facts fails at its first task, and not the others here.
        for name in sorted(names - set(inputs_from_facts(host_vars)) if names else ()):
            found.setdefault(name, []).append(host)
    return [
        f"{name} (set for {on[0]}{f' and {len(on) - 1} more' if len(on) > 1 else ''}) is not a variable of this "
        f"collection{_suggestion(name)}"
        for name, on in found.items()
    ]


def not_taken_errors(books: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return an error for each extra variable that belongs to other playbooks than those of the command line.

    A file of variables may be shared by playbooks, and so may those of a playbook that imports ours.
    """
    called = [_book(str(path)) for path in context.CLIARGS.get("args") or ()]
    if not called or not set(called) <= books.keys():
        return []
    taken = {name for book in called for name in books[book]["variables"]}
    return [
        f"{name} is not a variable of {' and '.join(called)}; it is for {', '.join(_takers(name, books))}."
        for name in _given_directly()
        if name in load_spec()["variables"] and name not in taken
    ]


def _takers(name: str, books: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [book for book, about in books.items() if name in about["variables"]]


def _book(path: str) -> str:
    """The name of a playbook from playbooks/stop.yml or magi.llama.stop."""
    return path.removeprefix("magi.llama.") if path.startswith("magi.llama.") else Path(path).stem


def _given_directly() -> list[str]:
    """The names of extra variables that are on the command line itself."""
    names: dict[str, None] = {}
    for given in map(str, context.CLIARGS.get("extra_vars") or ()):
        if given.startswith(("{", "[")):
            loaded = yaml.safe_load(given)
            names.update(dict.fromkeys(map(str, loaded)) if isinstance(loaded, dict) else {})
        elif not given.startswith("@"):
            names.update(dict.fromkeys(map(str, parse_kv(given))))
    return list(names)


def _suggestion(name: str) -> str:
    """The end of an error: the nearest names, or where all are."""
    close = misspelled(name, [one for one in known_names() if len(one) > 3]) or near(name, known_names())
    return f"; did you mean {' or '.join(close[:2])}?" if close else "; docs/variables.md lists them."
