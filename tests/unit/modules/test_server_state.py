# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module server_state in check mode: what hosts that wait for their turn are to know of a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all
from ansible_collections.magi.llama.plugins.modules import server_state as module


def test_slowest_start_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servers = [
        {"name": name, "model_id": name, "port": port, "argv": ["/x"], "stop_timeout": 1, "max_startup_time": seconds}
        | {"memory": {"ram_bytes": 0, "vram_bytes": 0}}
        for name, port, seconds in (("a", 1, 700), ("b", 2, 900), ("c", 3, 1800))
    ]
    record = {"profile": "p", "service_manager": "supervisor", "start": None, "servers": servers}
    write_all(state_files(str(tmp_path), record)[0])
    given = {"state_dir": str(tmp_path), "state": "started", "servers": ["a", "b"], "without_downtime": True}
    with patch_module_args({**given, "_ansible_check_mode": True, FILLED_IN: {}}), pytest.raises(SystemExit):
        module.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["start_seconds"] == 900, answer
