# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads and validates a profile on the controller; documented in the module of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.profile import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import nearest, validate
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_yaml, misread_numbers

# A key that each file has which the collection writes on the controller, and no profile.
OURS = frozenset(["schema_version"])


class ActionModule(HostAction):
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = check_arguments(self, ARGUMENTS, paths_of_host=False)
        name = arguments["name"]
        folders = [Path(folder) for folder in arguments["search_paths"]]
        source = next((folder / f"{name}.yml" for folder in folders if (folder / f"{name}.yml").is_file()), None)
        if source is None or "/" in name:
            raise AnsibleActionFail(_not_found(name, folders))
        what = f'profile "{name}"'
        # Text from a host must not become a template, which runs here: what the collection has written is not loaded.
        plain = load_yaml(self._loader, str(source), what)
        if isinstance(plain, dict) and not OURS.isdisjoint(plain):
            raise AnsibleActionFail(
                f"{source} is not a profile: the collection has written it itself, as a manifest or a result. Move it "
                "away, and look who has set registry_manifest_dest or output_file to this path."
            )
        # Before it is validated: the warning explains a value that is refused.
        show(task_vars or {}, [f"{WARNING}{text}" for text in misread_numbers(self._loader, str(source))])
        # The user's own vars file: like any vars file it may use templates.
        content = load_yaml(self._loader, str(source), what, trusted_as_template=True)
        try:
            profile = validate(name, str(source), self._templar.template(content))
        except MagiError as error:
            raise AnsibleActionFail(str(error)) from error
        return {**result, "changed": False, "ansible_facts": {"llama_profile": profile}}


def _not_found(name: str, folders: list[Path]) -> str:
    found = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yml")})
    looked = " and ".join(str(folder) for folder in folders)
    return (
        f'There is no profile "{name}": {nearest(name, found)} Looked for {name}.yml in {looked}; '
        f"there are: {', '.join(found) or 'none'}."
    )
