# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signs the manifest on the controller; documented in the module of the same name."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.sign_manifest import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.files import read_regular, write_atomic
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show
from ansible_collections.magi.llama.plugins.plugin_utils.signatures import sign, signature_path, verify

MAX_BYTES = 1 << 16


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        given = check_arguments(self, ARGUMENTS, paths_of_host=False)
        path, signed = given["path"], signature_path(given["path"])
        if self._task.check_mode and not os.path.exists(path):
            # The run would write it first.
            return {**result, "changed": True, "signature": signed}
        made = sign(path, given["secret_key"], given["password"])
        before = read_regular(signed, MAX_BYTES)
        if before != made and not self._task.check_mode:
            try:
                write_atomic(signed, made, 0o644)
            except OSError as error:
                raise AnsibleActionFail(f"{signed} cannot be written: {error.strerror}.") from error
        if given["public_key"] and not self._task.check_mode:
            verify(path, given["public_key"])
        if before != made:
            show(task_vars or {}, [f"      signed  {signed}"])
        return {**result, "changed": before != made, "signature": signed}
