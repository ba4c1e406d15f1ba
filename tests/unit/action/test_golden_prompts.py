# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action golden_prompts: the file is read here, the host gets its prompts, and a problem fails the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.plugin_utils.host_results import failure
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import COLLECTION

PROMPTS = "- {name: capital, prompt: Capital of France?, expect: {contains: Paris}}\n"
PROBLEM = {"prompt": "capital", "property": "contains", "detail": '"Paris" is missing; the answer is "Rome"'}


def answer(*problems: dict[str, str], prompts: int = 1, **more: Any) -> dict[str, Any]:
    server = {"name": "a", "model_id": "qwen3", "port": 8080, "prompts": prompts, "tokens_per_second": None}
    return {"changed": False, "servers": [{**server, "reference": None, "problems": list(problems), **more}]}


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.yml").write_text(PROMPTS)
    return {"state_dir": "/s", "path": str(tmp_path / "p.yml")}


def test_host_gets_the_prompts_and_not_the_path(run_action: Any, arguments: dict[str, Any]) -> None:
    run = run_action("golden_prompts", {**arguments, "max_slowdown": 0.2}, answers=[answer()])
    [(name, sent)] = run.calls
    assert name == "golden_prompts" and "path" not in sent and sent["max_slowdown"] == 0.2
    assert [prompt["name"] for prompt in sent[FILLED_IN]["prompts"]] == ["capital"]
    assert not run.result.get("failed")
    assert run.lines == ["h | a port 8080: 1 of 1 prompts passed"]


def test_failed_property_fails_the_task_and_is_named(run_action: Any, arguments: dict[str, Any]) -> None:
    run = run_action("golden_prompts", arguments, answers=[answer(PROBLEM)])
    assert run.result["failed"]
    first, last = run.result["msg"].splitlines()
    # The rollout's summary shows the first line.
    assert first == (
        'prompt "capital", model qwen3 (server a), property contains: "Paris" is missing; the answer is "Rome"'
    )
    assert last == "0 of 1 servers passed, 1 prompts were asked."


def test_speed_is_shown_with_the_one_before(run_action: Any) -> None:
    slow = {"prompt": "speed", "property": "tokens_per_second", "detail": "70 tokens/s"}
    found = answer(slow, prompts=0, tokens_per_second=70.0, reference=100.0)
    run = run_action("golden_prompts", {"state_dir": "/s", "max_slowdown": 0.2}, answers=[found])
    assert run.lines == ["h | a port 8080: 0 of 0 prompts passed, 70 tokens/s (100 before), TOO SLOW"]
    assert run.result["failed"]


def test_prompts_for_no_model_of_the_host_are_said(run_action: Any, arguments: dict[str, Any]) -> None:
    run = run_action("golden_prompts", arguments, answers=[answer(prompts=0)])
    assert "no server of this host has a model that a prompt is for" in run.result["msg"]
    assert not run.result.get("failed")


def test_missing_file_is_named_before_the_host_is_asked(run_action: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(AnsibleActionFail, match="there is no file"):
        run_action("golden_prompts", {**arguments, "path": "/nowhere/p.yml"})


def test_host_that_is_lost_while_it_is_asked_counts_as_unreachable() -> None:
    """verify.yml ignores unreachable hosts until its last task, which looks at what tasks have registered."""
    [task] = yaml.safe_load((COLLECTION / "playbooks/tasks/golden_prompts.yml").read_text())
    lost = {task["register"]: {"unreachable": True, "msg": "gone"}}
    assert failure(lost) == {"task": None, "error": "gone", "unreachable": True}
