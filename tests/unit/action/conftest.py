# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs action plugins as Ansible does, with a fake of _execute_module, the only method that reaches a host."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible.utils.display import Display

PACKAGE = "ansible_collections.magi.llama.plugins.action"


class Run:
    """A run of an action: its result, its module calls, and its printed lines."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.lines: list[str] = []


class Harness:
    """Calls action plugins. `answers` are the results of the fake host, in order; too many or too few calls fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        answers: Iterable[dict[str, Any] | Callable[[str], dict[str, Any]]] = (),
        facts: dict[str, Any] | None = None,
        check: bool = False,
        transport: str = "ssh",
        **task_vars: Any,
    ) -> Run:
        run = Run()
        pending = list(answers)
        loader = DataLoader()
        task = Task.load({"action": f"magi.llama.{name}", "args": arguments, "check_mode": check})
        module = importlib.import_module(f"{PACKAGE}.{name}")
        connection = SimpleNamespace(transport=transport, _shell=SimpleNamespace(tmpdir=None))
        action = module.ActionModule(task, connection, SimpleNamespace(), loader, Templar(loader), None)

        def execute_module(
            module_name: str | None = None,
            module_args: dict[str, Any] | None = None,
            task_vars: dict[str, Any] | None = None,
            wrap_async: bool = False,
        ) -> dict[str, Any]:
            called = (module_name or f"magi.llama.{name}").removeprefix("magi.llama.")
            run.calls.append((called, dict(module_args or {})))
            assert pending, f"an unexpected call of {called}"
            answer = pending.pop(0)
            return dict(answer(called) if callable(answer) else answer)

        action._execute_module = execute_module
        self._monkeypatch.setattr(Display, "display", lambda _self, line, *_args, **_options: run.lines.append(line))
        variables = {"inventory_hostname": "h", "ansible_facts": facts or {}, "hostvars": {}, **task_vars}
        run.result = action.run(None, variables)
        assert not pending, f"{len(pending)} answers were not used"
        return run


@pytest.fixture
def run_action(monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(monkeypatch)
