# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What the variable apply names: a hash, or the document of plan.yml on the controller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import RESULT
from ansible_collections.magi.llama.plugins.module_utils._plan.approval import (
    ApprovalError,
    Approved,
    approved_document,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.document import PLAN
from ansible_collections.magi.llama.plugins.module_utils._plan.plan_hash import SHOWN_DIGITS, given_hash
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called


def read_approved(value: Any) -> Approved:
    """Return what is to be applied. Raises AnsibleActionFail if the value is neither a hash nor a plan's document."""
    digits = given_hash(value)
    if digits:
        return Approved(digits)
    path = Path(str(value)).expanduser()
    if not str(value).strip() or not path.is_file():
        what = f"neither a hash ({SHOWN_DIGITS} to 64 hexadecimal digits) nor a file on the controller"
        raise AnsibleActionFail(f'apply is "{value}", which is {what}{as_called(" with the document of plan.yml.")}')
    try:
        document = RESULT.load(json.loads(path.read_text(encoding="utf-8")))
        for host in document["hosts"].values():
            if "error" not in host and document["kind"] == "plan":
                PLAN.load(host)
        return approved_document(document, str(path))
    except ApprovalError as error:
        raise AnsibleActionFail(as_called(str(error))) from error
    except (OSError, ValueError, MagiError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        text = as_called(f"apply: {path} cannot be read as the document of plan.yml")
        raise AnsibleActionFail(f"{text}: {what}") from error
