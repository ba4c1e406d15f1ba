# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Write a playbook's document to the screen and to a file on the controller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.module_utils._core.files import write_atomic
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import to_text
from ansible_collections.magi.llama.plugins.plugin_utils.show import is_read_by_program


def publish(document: Mapping[str, Any], on_screen: bool, path: str | None) -> None:
    """Print a document in one piece, and write it to a file if a path is given.

    Where a program reads what Ansible prints, the task's result has the document instead.
    """
    text = to_text(document)
    if path:
        try:
            write_atomic(str(Path(path).expanduser()), text.encode(), 0o644)
        except OSError as error:
            raise AnsibleActionFail(f"output_file {path} cannot be written: {error.strerror}.") from error
    if on_screen and not is_read_by_program():
        # One call, so that no other output is printed in between.
        Display().display(text.rstrip("\n"))
