# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the roles, each documented in a file of its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._deployment.remaining import remaining_models
from ansible_collections.magi.llama.plugins.module_utils._gateway import fleet
from ansible_collections.magi.llama.plugins.module_utils._launch import on_demand, quadlet, quoting, units
from ansible_collections.magi.llama.plugins.module_utils._models import checksums
from ansible_collections.magi.llama.plugins.module_utils._monitoring import targets
from ansible_collections.magi.llama.plugins.module_utils._monitoring.program import exporter_program
from ansible_collections.magi.llama.plugins.module_utils._plan import turns
from ansible_collections.magi.llama.plugins.module_utils._watchdog.file import watchdog_program
from ansible_collections.magi.llama.plugins.plugin_utils.inventory_places import existing_manifest, next_to_inventory
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_manifest

FUNCTIONS = (
    as_called,
    existing_manifest,
    exporter_program,
    load_manifest,
    next_to_inventory,
    remaining_models,
    watchdog_program,
    checksums.merge_manifests,
    fleet.gateway_servers,
    fleet.model_hosts,
    fleet.serving_gateways,
    fleet.unserved_servers,
    on_demand.systemd_listen,
    on_demand.systemd_on_demand,
    on_demand.systemd_proxy,
    quadlet.quadlet_container,
    quadlet.quadlet_service,
    targets.exporter_access,
    targets.exporter_targets,
    turns.has_touched,
    turns.ready_models,
    turns.wave_at,
    turns.wave_turns,
    units.systemd_dependencies,
    units.systemd_restart,
    units.systemd_sandbox,
    units.systemd_start_limit,
    units.systemd_stop,
    quoting.systemd_argv,
    quoting.systemd_environment,
    quoting.systemd_paths,
    quoting.systemd_settings,
    quoting.supervisor_command,
    quoting.supervisor_environment,
    quoting.supervisor_value,
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
