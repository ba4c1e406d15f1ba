# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The groups on GPUs' device nodes; plain files stand for the nodes."""

from __future__ import annotations

import grp
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.device_groups import device_groups


@pytest.mark.parametrize(
    ("node", "mode", "group", "expected"),
    [
        ("dri/renderD128", 0o660, "render", ["render"]),
        ("kfd", 0o660, "video", ["video"]),
        ("nvidia0", 0o666, "render", []),
        # Another group gives more than a GPU.
        ("dri/renderD128", 0o660, "docker", []),
        # Every host with a screen has it.
        ("dri/card0", 0o660, "video", []),
    ],
)
def test_groups_of_device_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, node: str, mode: int, group: str, expected: list[str]
) -> None:
    (tmp_path / "dri").mkdir()
    (tmp_path / node).touch()
    (tmp_path / node).chmod(mode)
    monkeypatch.setattr(grp, "getgrgid", lambda _gid: SimpleNamespace(gr_name=group))
    assert device_groups(str(tmp_path)) == expected
