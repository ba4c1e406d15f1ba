# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls the module of the same name, with what the host cannot know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._core.documents import NAME
from ansible_collections.magi.llama.plugins.module_utils._models.names import slug
from ansible_collections.magi.llama.plugins.plugin_utils.events import event
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.inventory_places import (
    MANIFEST,
    existing_manifest,
    next_to_inventory,
)
from ansible_collections.magi.llama.plugins.plugin_utils.show import show
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_manifest


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        profile = arguments.get("profile") or {}
        named = {entry["model"] for entry in profile.get("enabled_models", []) if entry["model"]}
        if self._task.check_mode:
            # The scan was in check mode too, so the file may be old or missing: use the fact, unless it is the short
            # one, which means that the file is current.
            # The one exception is a check without a scan, which plans from the file.
            registry = (task_vars.get("ansible_facts") or {}).get("llama_registry")
            if registry and all("memory" in model for model in registry["models"]):
                arguments.setdefault("registry", registry)
        missing = named - _ids(task_vars)
        if missing:
            # Only the controller has the other hosts' registries, as facts.
            hosts = [task_vars["hostvars"][host] for host in task_vars.get("ansible_play_hosts_all", [])]
            elsewhere = {name for host_vars in hosts for name in _ids(host_vars)}
            arguments = fill_in(arguments, known_elsewhere=sorted(missing & elsewhere))
            # Hosts of earlier runs are not in this one, and the manifest has their files.
            listed = self._in_manifest(task_vars) if missing - elsewhere else set()
            if listed & missing - elsewhere:
                arguments = fill_in(arguments, known_from_manifest=sorted(listed & missing - elsewhere))
        answer = self.ask("server_plan", arguments, task_vars)
        plan = (answer.get("ansible_facts") or {}).get("llama_plan")
        if plan and not answer.get("failed"):
            event(task_vars, "plan", {"plan": plan})
        rehearsal = answer.get("rehearsal") or {}
        lines = [*rehearsal.get("lines", ()), *(f"cannot be used: {text}" for text in rehearsal.get("problems", ()))]
        show(task_vars, [f"candidate: {line}" for line in lines])
        return {**result, **answer}

    def _in_manifest(self, task_vars: dict[str, Any]) -> set[str]:
        """Ids of the models that the manifest lists: the role registry's, else the one next to the inventory."""
        path = self._templar.template(task_vars.get("registry_manifest_file"))
        if path is None:
            folder = task_vars.get("inventory_dir")
            path = existing_manifest(next_to_inventory(MANIFEST, folder=folder)) if folder else ""
        path = os.path.join(task_vars.get("inventory_dir") or "", path) if path else ""
        # One that is damaged is refused by the scan, which checks files against it.
        key = str(self._templar.template(task_vars.get("registry_manifest_public_key")) or "")
        files = load_manifest(path, self._loader, key).get("files") if os.path.isfile(path) else None
        return {slug(str(name)) for name in files} if isinstance(files, Mapping) else set()


def _ids(host_vars: Any) -> set[str]:
    """Ids of a host's models. Another host's fact may be anything: it must not fail the plan of this one."""
    found = (host_vars.get("ansible_facts") or {}).get("llama_registry")
    models = found.get("models") if isinstance(found, Mapping) else None
    known = [model.get("id") for model in models if isinstance(model, Mapping)] if isinstance(models, list) else []
    return {str(name) for name in known if isinstance(name, str) and NAME.fullmatch(name)}
