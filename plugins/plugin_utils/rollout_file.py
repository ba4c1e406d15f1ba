# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The document of a rollout that the variable rollout names, on the controller."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._output.rollout_summary import ROLLOUT, changed_hosts
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called


def hosts_to_return(value: Any, hosts: Container[str]) -> list[str]:
    """Return the hosts of this run that a rollout has changed; value is the path of its document.

    Raises AnsibleActionFail for another file, and where there is no such host.
    """
    path = Path(str(value)).expanduser()
    if not path.is_file():
        what = as_called("It is the document that rollout.yml has written with -e output_file=rollout.json.")
        raise AnsibleActionFail(f'rollout is "{value}": there is no such file on the controller. {what}')
    try:
        changed = changed_hosts(ROLLOUT.load(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, MagiError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        text = as_called(f"rollout: {path} cannot be read as the document of rollout.yml")
        raise AnsibleActionFail(f"{text}: {what}") from error
    found = [name for name in changed if name in hosts]
    if not found:
        none = f"none of those that it changed ({', '.join(changed)}) is in this run"
        why = none if changed else "it changed no host"
        raise AnsibleActionFail(f"rollout: nothing is to be rolled back of {path}: {why}.")
    return found
