# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the roles, each documented in a file of its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.magi.llama.plugins.module_utils import _integrity, _launch, _quote, _settings
from ansible_collections.magi.llama.plugins.module_utils._errors import MagiError

FUNCTIONS = (
    _integrity.merge_manifests,
    _launch.systemd_dependencies,
    _launch.systemd_restart,
    _launch.systemd_sandbox,
    _launch.systemd_start_limit,
    _quote.systemd_argv,
    _quote.systemd_environment,
    _quote.systemd_paths,
    _quote.systemd_settings,
    _quote.supervisor_command,
    _quote.supervisor_environment,
    _quote.supervisor_value,
    _settings.setting_errors,
)


def _filter(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(value: Any, **options: Any) -> Any:
        try:
            return function(value, **options)
        except MagiError as error:
            raise AnsibleFilterError(str(error)) from error

    return apply


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {function.__name__: _filter(function) for function in FUNCTIONS}
