# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Read YAML files of the user on the controller; an error names the file and the line in its own text.

Ansible shows the place on the screen only; msg is all that a document or a callback has.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called


def load_yaml(loader: DataLoader, path: str, what: str, **options: Any) -> Any:
    """The content of a file; what it is comes first in an error. Raises AnsibleActionFail."""
    try:
        return loader.load_from_file(path, cache="none", **options)
    except AnsibleError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise AnsibleActionFail(f"{what} ({path}{line}): {error}") from error


def load_manifest(path: str, loader: DataLoader | None = None) -> dict[str, Any]:
    """The manifest at path; empty for an empty path. Raises AnsibleActionFail where it is not one."""
    manifest = load_yaml(loader or DataLoader(), path, "manifest") if path else {}
    if not isinstance(manifest, dict):
        advice = as_called("Write it with manifest.yml.")
        raise AnsibleActionFail(f"{path} is not a manifest: it contains no mapping. {advice}")
    return manifest
