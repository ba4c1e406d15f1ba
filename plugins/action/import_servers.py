# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proposes a profile from another program's settings; documented in the module of the same name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.import_servers import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import read_regular
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text, visible_value
from ansible_collections.magi.llama.plugins.module_utils._import.proposal import Proposal, proposal_of
from ansible_collections.magi.llama.plugins.module_utils._import.settings import Server, parse_command
from ansible_collections.magi.llama.plugins.module_utils._import.sources import (
    llama_swap,
    lm_studio,
    models_preset,
    ollama,
)
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.export_text import to_text
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_yaml

MAX_BYTES = 4 << 20
PROFILE, VARIABLES = "profiles/{}.yml", "{}.variables.yml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given = check_arguments(self, ARGUMENTS, paths_of_host=False)
        if bool(given["source"]) == bool(given["command"]):
            raise AnsibleActionFail("Set either import_from, a file or folder, or import_command, and not both.")
        if not NAME.fullmatch(given["name"]):
            raise AnsibleActionFail(
                f'import_name is "{given["name"]}": set it to a name of letters, digits, dots, hyphens and underscores.'
            )
        try:
            made = self._proposal(given)
        except MagiError as error:
            raise AnsibleActionFail(visible_text(f"{given['source'] or 'import_command'}: {error}")) from error
        except OSError as error:
            raise AnsibleActionFail(f"import_from {given['source']} cannot be read: {error.strerror}.") from error
        texts = _texts(given["name"], made)
        written = _write(given["folder"], texts, self._task.check_mode) if given["folder"] else []
        show(task_vars, _lines(given["folder"], texts, written, made))
        return {
            **result,
            "changed": bool(written),
            "profile": made.profile,
            "variables": made.variables,
            "left_out": made.left_out,
            "written": written,
        }

    def _proposal(self, given: dict[str, Any]) -> Proposal:
        source = given["source"] and os.path.abspath(os.path.expanduser(given["source"]))
        if not source:
            servers = [parse_command("the command line", given["command"])]
            if " " not in given["command"].strip():
                # Ansible ends a value at a space.
                raise AnsibleActionFail(
                    "import_command has one word only: quote the command line within the variable "
                    "(-e \"import_command='llama-server -m …'\"), or put it into a file and name that with import_from."
                )
        else:
            servers = self._readers()[_format_of(source, given["format"])](source)
        name = os.path.basename(source) if source else "a command line"
        made = proposal_of(servers, name)
        return Proposal(visible_value(made.profile), visible_value(made.variables), visible_value(made.left_out))

    def _readers(self) -> dict[str, Callable[[str], list[Server]]]:
        return {
            "llama-swap": lambda path: llama_swap(json.loads(json.dumps(load_yaml(self._loader, path, "import_from")))),
            "models-preset": lambda path: models_preset(_text_of(path)),
            "ollama": ollama,
            "lm-studio": lm_studio,
            "command": lambda path: [parse_command(os.path.basename(path), _text_of(path))],
        }


def _format_of(path: str, wanted: str) -> str:
    """The format of a file or folder. Raises AnsibleActionFail where that is unknown or does not fit."""
    if not os.path.exists(path):
        raise AnsibleActionFail(f'import_from is "{path}", which does not exist on the controller.')
    is_folder = os.path.isdir(path)
    if wanted == "auto":
        wanted = _guess(path, is_folder)
    if is_folder != (wanted in ("ollama", "lm-studio")):
        raise AnsibleActionFail(
            f"import_from {path} is a {'folder' if is_folder else 'file'}, and import_format {wanted} needs a "
            f"{'file' if is_folder else 'folder'}."
        )
    return wanted


def _guess(path: str, is_folder: bool) -> str:
    if is_folder:
        stores = (path, os.path.join(path, "models"))
        return "ollama" if any(os.path.isdir(os.path.join(one, "manifests")) for one in stores) else "lm-studio"
    known = {".yaml": "llama-swap", ".yml": "llama-swap", ".ini": "models-preset", ".sh": "command"}
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in known:
        raise AnsibleActionFail(
            f"import_from {path} does not say by its name what it is: set import_format to llama-swap, "
            "models-preset or command."
        )
    return known[suffix]


def _text_of(path: str) -> str:
    content = read_regular(path, MAX_BYTES)
    if content is None:
        raise AnsibleActionFail(f"import_from {path} is not a readable file of up to {MAX_BYTES >> 20} MiB.")
    return content.decode("utf-8", "replace")


def _texts(name: str, made: Proposal) -> dict[str, str]:
    # Files are the same, however the playbook was called.
    about = "# A proposal: compare the ids of models with those that a scan shows.\n"
    contents = {PROFILE: made.profile, VARIABLES: made.variables}
    return {path.format(name): to_text(path, content, about) for path, content in contents.items() if content}


def _write(folder: str, texts: dict[str, str], is_check: bool) -> list[str]:
    """Write the files that do not exist; return their paths. Raises AnsibleActionFail, before anything is written."""
    paths = {os.path.join(os.path.abspath(os.path.expanduser(folder)), name): text for name, text in texts.items()}
    taken = [path for path, text in paths.items() if os.path.lexists(path) and _differs(path, text)]
    if taken:
        raise AnsibleActionFail(
            f"{' and '.join(taken)} exist{'s' if len(taken) == 1 else ''} and would be another file. Nothing was "
            "written. Set import_name or import_dir to another one, or move it away."
        )
    new = {path: text for path, text in paths.items() if not os.path.lexists(path)}
    for path, text in new.items() if not is_check else ():
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # Never over a file that has come in between.
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise AnsibleActionFail(f"import_dir: {path} cannot be written: {error.strerror}.") from error
    return list(new)


def _differs(path: str, text: str) -> bool:
    return read_regular(path, MAX_BYTES) != text.encode()


def _lines(folder: str | None, texts: dict[str, str], written: list[str], made: Proposal) -> list[str]:
    if folder:
        shown = [f"written {path}" for path in written] or ["nothing to write: the files are there"]
    else:
        shown = [line for name, text in texts.items() for line in (f"--- {name}", *text.splitlines())]
    return [*shown, *(f"{WARNING}{text}" for text in made.left_out)]
