# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module wait_until_idle: what it reads ahead, and that its run keeps the lock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import LEASE_SECONDS, Run, acquire, holder
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all
from ansible_collections.magi.llama.plugins.modules import wait_until_idle as module


@pytest.fixture
def read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """Two servers that do not run, and the files that are read ahead with the bytes that are available."""
    servers = [
        {"name": name, "model_id": name, "port": port, "argv": ["/x", "--model", f"/m/{name}.gguf"], "stop_timeout": 1}
        for name, port in (("old", 8080), ("new", 8081))
    ]
    record = {"profile": "p", "service_manager": "supervisor", "start": None, "servers": servers}
    write_all(state_files(str(tmp_path), record)[0])
    calls: list[tuple[list[str], int]] = []
    monkeypatch.setattr(module, "preload", lambda paths, available: calls.append((list(paths), available)))
    return calls


def run(
    state_dir: Path,
    capsys: pytest.CaptureFixture[str],
    elapsed: float = 0,
    check: bool = False,
    run_id: str | None = None,
) -> dict[str, Any]:
    arguments = {"state_dir": str(state_dir), "servers": ["old"], "preload": ["new"], "timeout": 5}
    arguments |= {FILLED_IN: {"run_id": run_id, "slice": 1, "elapsed": elapsed}, "_ansible_check_mode": check}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_files_of_next_servers_are_read_ahead_once(
    tmp_path: Path, read_ahead: list[tuple[list[str], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, capsys)["msg"] == "1 of 1 servers are idle"
    [(paths, available)] = read_ahead
    assert (paths, available > 0) == (["/m/new.gguf"], True)
    # A later call of the same wait.
    run(tmp_path, capsys, elapsed=2)
    assert len(read_ahead) == 1


def test_lock_is_renewed_by_each_call_of_a_long_wait(
    tmp_path: Path, read_ahead: list[tuple[list[str], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A drain may take longer than a lock lasts without it."""
    mine = Run("r", "ops", "ann", 1, "site.yml")
    acquire(str(tmp_path), mine, lease=20)
    run(tmp_path, capsys, elapsed=400, run_id="r")
    held = holder(str(tmp_path))
    assert held is not None and held.seconds_left > LEASE_SECONDS - 20


def test_nothing_is_read_ahead_in_check_mode(
    tmp_path: Path, read_ahead: list[tuple[list[str], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, capsys, check=True)["changed"] is False
    assert read_ahead == []
