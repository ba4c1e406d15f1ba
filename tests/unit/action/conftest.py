# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs action plugins as Ansible does, with a fake of _execute_module, the only method that reaches a host."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.module_utils._output.event import load_event
from ansible_collections.magi.llama.plugins.plugin_utils import events
from support.schemas import errors

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


class Sink:
    """Keeps the events of actions, each of which has to be valid; fails as often as its test wants."""

    name = "memory"

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.failures = 0

    def write(self, line: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise events.SinkError("MAGI_EVENTS: memory is full.")
        self.lines.append(line)

    def found(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.lines]
        for event in found:
            assert errors("event", event) == []
            load_event(event)
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.found() if event["type"] == kind]


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    """What the actions of a test report."""
    kept = Sink()
    reporter = events.Reporter("run-1", kept)
    monkeypatch.setattr(events._Process, "reporter", reporter)
    yield kept
    reporter.close()
