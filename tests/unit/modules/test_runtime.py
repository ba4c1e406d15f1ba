# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module runtime: what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.magi.llama.plugins.modules import runtime as module


def test_folder_as_cache_path_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    with patch_module_args({"path": str(program), "cache_path": str(tmp_path)}), pytest.raises(SystemExit):
        module.main()
    message = json.loads(capsys.readouterr().out)["msg"]
    assert message.startswith(f"runtime_cache_path is the path of a file, but {tmp_path} is a folder. Nothing was")
    assert f"Set runtime_cache_path to a file, such as {tmp_path}/runtime.json." in message
    assert [path.name for path in tmp_path.iterdir()] == ["llama-server"]
