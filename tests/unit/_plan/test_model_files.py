# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that the servers' user may not read are found by the plan."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.commands import UNPRIVILEGED, User
from ansible_collections.magi.llama.plugins.module_utils._core.readable import unreadable
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import PlanError
from ansible_collections.magi.llama.plugins.module_utils._plan.model_files import files_to_read, require_readable

REGISTRY = {"models": [{"path": "/m/a-1-of-2.gguf", "files": ["/m/a-1-of-2.gguf", "/m/a-2-of-2.gguf"]}]}


def planned(action: str = "restart") -> dict[str, Any]:
    argv = ["llama-server", "--model", "/m/a-1-of-2.gguf", "--mmproj", "/m/mmproj.gguf", "--port", "8080"]
    return {"servers": [{"name": "a", "action": action, "argv": argv}]}


def test_files_are_those_of_servers_that_are_started() -> None:
    assert list(files_to_read(planned(), REGISTRY)) == ["/m/a-1-of-2.gguf", "/m/a-2-of-2.gguf", "/m/mmproj.gguf"]
    assert files_to_read(planned("keep"), REGISTRY) == {}


def test_unreadable_file_is_an_error_that_names_file_server_and_user() -> None:
    with pytest.raises(PlanError, match=r"user llama cannot read /m/a-2-of-2.gguf \(server a\)\. Nothing was changed"):
        require_readable(planned(), REGISTRY, "llama", lambda paths: [path for path in paths if "2-of-2" in path])
    require_readable(planned(), REGISTRY, "llama", lambda _paths: [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root asks as another user")
def test_unreadable_asks_as_the_user() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        paths = [folder / "open file", folder / "closed", folder / "closed folder/open"]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")
            path.chmod(0o644)
        paths[1].chmod(0o600)
        paths[2].parent.chmod(0o700)
        given = [str(path) for path in paths]
        assert unreadable(given, None) == []
        assert unreadable(given, User(UNPRIVILEGED, UNPRIVILEGED)) == given[1:]
        # By a group.
        paths[1].chmod(0o640)
        os.chown(paths[1], 0, 12345)
        assert unreadable(given, User(UNPRIVILEGED, UNPRIVILEGED, [12345])) == given[2:]
