# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The type of a module's arguments: a constant in _arguments, used by the module and its action plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The option for values that only the action plugin sets. Internal, so it is not documented.
FILLED_IN = "_filled_in"


@dataclass(frozen=True)
class Arguments:
    """The arguments of a module.

    options are what users may set, as in AnsibleModule's argument_spec and in the module's documentation. filled_in
    are those that only its action plugin sets. rules are AnsibleModule's mutually_exclusive, required_by and so on.
    """

    options: Mapping[str, Any]
    filled_in: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)


def fill_in(arguments: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return a module's arguments with values from its action plugin, added to those that were filled in before."""
    return {**arguments, FILLED_IN: {**arguments.get(FILLED_IN, {}), **values}}


def on_controller(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as an action plugin checks them: host paths are text here, so that ~ is not expanded."""
    return {name: _on_controller(option) for name, option in options.items()}


def _on_controller(option: Mapping[str, Any]) -> dict[str, Any]:
    # Ansible guesses from an option's name whether it is secret; a path is not.
    no_log = {"no_log": False} if option.get("type") == "path" else {}
    as_text = {key: "str" for key in ("type", "elements") if option.get(key) == "path"}
    inner = {"options": on_controller(option["options"])} if "options" in option else {}
    return {**no_log, **option, **as_text, **inner}
