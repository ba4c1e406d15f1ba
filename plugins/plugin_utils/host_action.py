# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The base of the action plugins: a host's answers are held to what its module returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.magi.llama.plugins.module_utils._arguments.answers import held_answer
from ansible_collections.magi.llama.plugins.module_utils._core.documents import DocumentError
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text
from ansible_collections.magi.llama.plugins.plugin_utils.events import begin_task, event
from ansible_collections.magi.llama.plugins.plugin_utils.inputs import refuse_inputs_from_facts
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import answer_as_called, as_called
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, prints_document, show

PREFIX = "magi.llama."
# Where ansible-core collects a task's warnings since 2.19.
CONTEXT = ("ansible._internal._display_utils", "DeferredWarningContext")


class HostAction(ActionBase):  # type: ignore[misc]
    """An action plugin of the collection: it fails the host whose facts or answers are unexpected, and no other."""

    _supports_check_mode = True
    TRANSFERS_FILES = False
    # False where the task is about all hosts of the play: it takes nothing from the variables of the one it runs for.
    _is_about_host = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        begin_task(bool(self._task.check_mode))
        if self._is_about_host:
            refuse_inputs_from_facts(task_vars or {})
        return result

    def ask(
        self, module: str, arguments: Mapping[str, Any], task_vars: dict[str, Any] | None, wrap_async: Any = False
    ) -> dict[str, Any]:
        """The answer of a module of the collection on the host. Raises AnsibleActionFail where it is not one."""
        name = module.removeprefix(PREFIX)
        with _taken_warnings(task_vars or {}) as taken:
            answer = self._execute_module(
                module_name=f"{PREFIX}{name}", module_args=dict(arguments), task_vars=task_vars, wrap_async=wrap_async
            )
        if taken:
            answer = {**answer, "warnings": [*(answer.get("warnings") or ()), *taken]}
        try:
            held = answer_as_called(held_answer(name, answer))
        except DocumentError as error:
            raise AnsibleActionFail(
                f"The host's answer is not used: {error}. Either the collection is not the same everywhere, or what "
                "runs on this host is not what was sent there."
            ) from None
        if held.get("warnings"):
            held["warnings"] = [_as_called(warning) for warning in held["warnings"]]
        _show_warnings(held, task_vars or {})
        return held


@contextmanager
def _taken_warnings(task_vars: dict[str, Any]) -> Iterator[list[Any]]:
    """Take what ansible-core has collected of a module's warnings, once it has ended.

    Otherwise they are printed as the host sent them, in addition to the report. The class is not public: where it is
    not found, those warnings are shown twice.
    """
    taken: list[Any] = []
    module, name = CONTEXT
    try:
        kind = getattr(import_module(module), name)
        outer, context = kind.current(optional=True), kind(variables=task_vars)
    except (ImportError, AttributeError, TypeError):
        yield taken
        return
    with context:
        yield taken
    taken += context.get_warnings()
    for deprecation in context.get_deprecation_warnings() if outer else ():
        outer.capture(deprecation)


def _show_warnings(answer: dict[str, Any], task_vars: dict[str, Any]) -> None:
    """Print an answer's warnings and take them out of it.

    With display_ok_hosts=false Ansible hides those of a task that changed nothing. What a report shows is left to it.
    """
    found = answer.get("ansible_facts") or {}
    reported = set(answer.get("warned") or [])
    for fact in ("llama_plan", "llama_runtime"):
        reported.update((found.get(fact) or {}).get("warnings") or [])
    texts = dict.fromkeys(_text_of(warning) for warning in answer.get("warnings") or [])
    if not texts:
        return
    if prints_document(task_vars):
        for text in texts:
            event(task_vars, "warning", {"text": visible_text(text)})
        return
    del answer["warnings"]
    show(task_vars, [f"{WARNING}{text}" for text in texts if text not in reported])


def _as_called(warning: Any) -> Any:
    text = _text_of(warning)
    called = as_called(text)
    return warning if called == text else called


def _text_of(warning: Any) -> str:
    """Return a warning's text: ansible-core has one in a record whose layout depends on its version."""
    if isinstance(warning, str):
        return warning
    event = getattr(warning, "event", None) or next(iter(getattr(warning, "details", None) or ()), None)
    return str(getattr(event, "msg", warning))


class ModuleAction(HostAction):
    """Calls the module of its own name once."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        return {**result, **self.ask(self._task.action, self._task.args, task_vars)}
