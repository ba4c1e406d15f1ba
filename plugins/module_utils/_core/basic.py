# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The frame of every module: read the arguments, turn errors into fail_json, return the result.

Uses ansible.module_utils.basic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .arguments import FILLED_IN, Arguments
from .errors import MagiError


class Module(AnsibleModule):  # type: ignore[misc]
    """An AnsibleModule that separates values from its action plugin from those that users set; params has both."""

    def __init__(self, arguments: Arguments) -> None:
        self._filled_in: dict[str, Any] = {}
        super().__init__(argument_spec=dict(arguments.options), supports_check_mode=True, **arguments.rules)
        checked = ArgumentSpecValidator(dict(arguments.filled_in)).validate(self._filled_in)
        if checked.error_messages:
            self.fail_json(
                msg=f"{'; '.join(checked.error_messages)}. The action plugin of this module sets this: call the "
                "module from a playbook."
            )
        self.params.update(checked.validated_parameters)

    def _return_formatted(self, kwargs: dict[str, Any]) -> None:
        # Ansible would add all of params, and hides what is no_log in the users' options only.
        given = {name: value for name, value in self.params.items() if name in self.argument_spec}
        kwargs.setdefault("invocation", {"module_args": given})
        super()._return_formatted(kwargs)

    def _load_params(self) -> None:
        super()._load_params()
        self._filled_in = self.params.pop(FILLED_IN, None) or {}


def run_module(arguments: Arguments, run: Callable[[Module], dict[str, Any]]) -> None:
    """Run a module: run returns its result, which is a failure if its key "failed" is true."""
    module = Module(arguments)
    try:
        result = run(module)
    except MagiError as error:
        module.fail_json(msg=str(error))
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)
