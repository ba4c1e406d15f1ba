# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run_lock: a run renews its lock, and one that has lost it fails."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core import run_lock
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.modules import run_lock as module

MINE = run_lock.Run("mine", "ops", "ann", 1, "site.yml")
OTHER = run_lock.Run("other", "ops", "bob", 2, "rollout.yml")


def call(capsys: pytest.CaptureFixture[str], folder: Path, **arguments: Any) -> dict[str, Any]:
    given = {"state_dir": str(folder), **arguments, FILLED_IN: {"run": asdict(MINE)}}
    with patch_module_args(given), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_lock_that_was_lost_is_not_taken_again_by_renewing_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run has changed the host and ended: the plan of this one is of the time before."""
    run_lock.acquire(str(tmp_path), MINE)
    run_lock.acquire(str(tmp_path), OTHER, dead=MINE.id)
    assert "Another run is changing this host" in call(capsys, tmp_path, state="renewed")["msg"]
    run_lock.release(str(tmp_path), OTHER.id)
    for _time in range(2):
        refused = call(capsys, tmp_path, state="renewed")
        assert refused["failed"] and "Another run has changed this host since" in refused["msg"]
    assert run_lock.holder(str(tmp_path)) is None


def test_lock_is_renewed_for_as_long_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_lock.acquire(str(tmp_path), MINE)
    assert call(capsys, tmp_path, state="renewed", lease=1200) == {"changed": False, "holder": None}
    held = run_lock.holder(str(tmp_path))
    assert held is not None and held.seconds_left > 1100
    # Once it waits for no others any more.
    call(capsys, tmp_path, state="renewed")
    held = run_lock.holder(str(tmp_path))
    assert held is not None and held.seconds_left < run_lock.LEASE_SECONDS + 1


def test_lock_that_the_run_has_not_is_not_taken_by_renewing_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert not call(capsys, folder, state="renewed").get("failed")
        assert not (folder / "run.lock").exists()
