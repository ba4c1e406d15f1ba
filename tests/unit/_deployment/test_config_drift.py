# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Launch configs that were edited or removed after they were deployed, and those that a plan would write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._deployment import config_drift, state_files
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import deployment_path, read_configs
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import File, write_all
from ansible_collections.magi.llama.plugins.module_utils._services.table import find_manager

SERVERS = [{"name": name, "model_id": name, "port": 1, "argv": []} for name in ("a", "b")]
RECORD: dict[str, Any] = {"profile": "p", "service_manager": "supervisor", "start": None, "servers": SERVERS}


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    write_all([*state_files.state_files(str(tmp_path), RECORD, configs=configs(tmp_path))[0], *configs(tmp_path)])
    return str(tmp_path)


def path_of(state_dir: str | Path, name: str) -> str:
    return find_manager("supervisor").config_path(str(state_dir), name)


def configs(state_dir: str | Path, *names: str) -> list[File]:
    text = f'environment=MAGI_LLAMA_STATE="{state_dir}"\n'.encode()
    common = File(find_manager("supervisor").common_config_path(str(state_dir)), b"common\n")
    return [common, *(File(path_of(state_dir, name), text) for name in names or ("a", "b"))]


def edit(path: str) -> None:
    Path(path).write_text(Path(path).read_text() + "; by hand\n")


def test_deployed_configs_are_no_drift(state_dir: str) -> None:
    assert len(read_configs(state_dir)) == 3
    assert config_drift.config_drift(state_dir, RECORD) == {}


def test_edited_removed_and_foreign_configs_are_drift(state_dir: str) -> None:
    common, a, b = (file.path for file in configs(state_dir))
    edit(common)
    edit(a)
    os.unlink(b)
    write_all(configs(state_dir, "c")[1:])
    assert config_drift.config_drift(state_dir, RECORD) == {
        common: "edited since it was deployed",
        "a": f"its launch config {a} was edited since it was deployed",
        "b": f"its launch config {b} was removed since it was deployed",
        path_of(state_dir, "c"): "a launch config that was not deployed",
    }
    # Another mode is an edit too.
    write_all(configs(state_dir))
    os.chmod(a, 0o600)
    assert list(config_drift.config_drift(state_dir, RECORD)) == ["a", path_of(state_dir, "c")]


def test_state_without_recorded_configs_is_no_drift(state_dir: str) -> None:
    """As an older version wrote it; the controller sees that the digests are to be recorded."""
    content = json.loads(Path(deployment_path(state_dir)).read_text())
    content.pop("configs")
    Path(deployment_path(state_dir)).write_text(json.dumps(content))
    edit(path_of(state_dir, "a"))
    assert config_drift.config_drift(state_dir, RECORD) == {}
    write_all(configs(state_dir))
    planned = state_files.planned(state_dir, RECORD, configs(state_dir))
    assert state_files.deployed(state_dir, "supervisor") != planned
    write_all(state_files.state_files(state_dir, RECORD, configs=configs(state_dir))[0])
    assert state_files.deployed(state_dir, "supervisor") == planned


def test_intention_keeps_recorded_configs(state_dir: str) -> None:
    before = read_configs(state_dir)
    state_files.note_intended(state_dir, {"a": "stopped"})
    assert read_configs(state_dir) == before and len(before) == 3


def test_configs_to_write_and_remove_are_drift_of_the_plan(state_dir: str) -> None:
    edit(path_of(state_dir, "a"))
    wanted = state_files.planned(state_dir, RECORD, configs(state_dir, "a", "c"))
    servers = [{"name": name} for name in ("a", "b", "c")]
    found = (
        state_files.of_configs(state_dir, part) for part in (state_files.deployed(state_dir, "supervisor"), wanted)
    )
    assert config_drift.planned_drift(state_dir, "supervisor", servers, *found) == {
        "a": f"to write the launch config {path_of(state_dir, 'a')}",
        "c": f"to write the launch config {path_of(state_dir, 'c')}",
        "b": f"to remove the launch config {path_of(state_dir, 'b')}",
    }
