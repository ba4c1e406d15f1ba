# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module begin_run: it changes no key before the controller has a backup of the present ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.module_utils._archive.state import unpacked
from ansible_collections.magi.llama.plugins.module_utils._core import run_lock
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.modules import begin_run

RUN = asdict(run_lock.Run("mine", "ops", "ann", 1, "site.yml"))
KEY = "k" * 32


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the module on a host with the state directory tmp_path."""

    def run(known: str = "", **arguments: Any) -> dict[str, Any]:
        given = {
            **{"state_dir": str(tmp_path), "user": "daemon", "service_manager": "supervisor"},
            **{"validate_launch": True, "api_key_file": "auto", FILLED_IN: {"run": RUN, "known": known}},
        }
        with patch_module_args({**given, **arguments}), pytest.raises(SystemExit):
            begin_run.main()
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert not answer.get("failed"), answer
        return answer

    return run


def test_keys_are_written_by_a_call_without_backup(tmp_path: Path, call: Any) -> None:
    (tmp_path / "deployment.json").write_text("{}")
    call()
    keys = (tmp_path / "api-keys").read_bytes()
    backup = {"keys": True, "api_key_file": "auto"}
    answer = call(api_keys=[KEY], backup=backup)
    assert answer["changed"] and answer["ansible_facts"]["llama_host"]["api_key_stamp"] == ""
    assert (tmp_path / "api-keys").read_bytes() == keys
    assert {file.name: file.content for file in unpacked(answer["state"]["files"])}["api-keys"] == keys
    answer = call(api_keys=[KEY])
    assert answer["changed"] and answer["ansible_facts"]["llama_host"]["api_key_stamp"]
    assert KEY in (tmp_path / "api-keys").read_text()
    assert not call(api_keys=[KEY], backup=backup)["changed"]


def test_keys_are_written_at_once_where_no_backup_is_to_be_kept(tmp_path: Path, call: Any) -> None:
    # Nothing is deployed.
    assert call(backup={})["changed"]
    assert (tmp_path / "api-keys").exists()
    (tmp_path / "api-keys").unlink()
    (tmp_path / "deployment.json").write_text("{}")
    digest = call(backup={})["state"]["digest"]
    assert not (tmp_path / "api-keys").exists()
    # The controller has that state.
    assert call(digest, backup={})["changed"]
    assert (tmp_path / "api-keys").exists()
