# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Check a task's arguments on the controller, against the constant that its module uses too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import Arguments, on_controller


def check_arguments(action: ActionBase, arguments: Arguments, *, paths_of_host: bool = True) -> dict[str, Any]:
    """Return a task's arguments, completed with defaults. Raises AnsibleError if one is invalid.

    With paths_of_host, paths are not expanded; otherwise they are paths on the controller.
    """
    options = on_controller(arguments.options) if paths_of_host else dict(arguments.options)
    _result, checked = action.validate_argument_spec(argument_spec=options, **arguments.rules)
    return dict(checked)


def check_option(name: str, value: Mapping[str, Any], arguments: Arguments) -> dict[str, Any]:
    """Return an option's value, which has arguments of another module. Raises AnsibleActionFail if one is invalid."""
    checked = ArgumentSpecValidator(on_controller(arguments.options)).validate(dict(value))
    if checked.error_messages:
        raise AnsibleActionFail(f"The option {name}: {'; '.join(checked.error_messages)}")
    return dict(checked.validated_parameters)
