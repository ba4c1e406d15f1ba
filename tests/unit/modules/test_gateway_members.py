# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module gateway_members: which run changes the host that it looks at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import Run, acquire
from ansible_collections.magi.llama.plugins.modules import gateway_members as module


def test_run_that_changes_the_host_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def listed(run_id: str) -> tuple[str | None, bool]:
        arguments = {"state_dir": str(tmp_path), "address": "192.0.2.1", FILLED_IN: {"run_id": run_id}}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return (answer["holder"] or {}).get("id"), answer["is_locked"]

    assert listed("mine") == (None, False)
    acquire(str(tmp_path), Run("other", "ops", "ann", 1, "rollout.yml"))
    assert listed("mine") == ("other", False)
    assert listed("other") == (None, True)
