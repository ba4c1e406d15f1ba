# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A local connection that fails during the task in MAGI_LOST_AT; at_task records the current task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection.local import Connection as LocalConnection

DOCUMENTATION = """
name: flaky
short_description: Loses the host during one task
description: For tests only.
extends_documentation_fragment: [connection_pipelining]
"""


class Connection(LocalConnection):
    transport = "flaky"

    def exec_command(self, *args: Any, **kwargs: Any) -> Any:
        noted = Path(os.environ["MAGI_NOW"])
        if noted.exists() and noted.read_text().endswith(os.environ["MAGI_LOST_AT"]):
            raise AnsibleConnectionFailure("the cable is out")
        return super().exec_command(*args, **kwargs)
