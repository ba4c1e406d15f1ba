# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin server_plan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.action import server_plan as action


@pytest.mark.parametrize(
    ("check", "model", "given"),
    [(True, {"id": "a", "memory": {}}, True), (True, {"id": "a"}, False), (False, {"id": "a", "memory": {}}, False)],
)
def test_registry_fact_in_check_mode_replaces_file(
    monkeypatch: pytest.MonkeyPatch, check: bool, model: dict[str, Any], given: bool
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(action.HostAction, "run", lambda *_arguments: {})
    plugin = action.ActionModule.__new__(action.ActionModule)
    plugin._task = SimpleNamespace(args={"profile": {}}, check_mode=check)
    plugin.ask = lambda _module, arguments, _task_vars: calls.append(arguments) or {}
    registry = {"models": [model]}
    plugin.run(None, {"ansible_facts": {"llama_registry": registry}})
    assert calls[0].get("registry") == (registry if given else None)
