# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles remove is their own: a folder that the user names only where it has their mark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import ROOT

# The file by which a role knows that a folder is its own.
MARKS = ("magi-llama-redis.conf", "magi-llama-monitoring.mark", "__console_mark")
# Of names that are this collection's alone.
OWN = re.compile(r"/(?:etc|usr/local/(?:lib|share))/[\w./-]*magi-llama[\w./@-]*")
# What is said after a folder's name is in it.
BELOW = re.compile(r"\}\}/[\w.]|\}\}/\{\{")
COMMANDS = ("ansible.builtin.command", "ansible.builtin.shell", "command", "shell")


def tasks_in(content: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for task in content:
        parts = [task[key] for key in ("block", "rescue", "always") if key in task]
        for part in parts:
            yield from tasks_in(part)
        if not parts:
            yield task


def tasks_of(path: Path) -> list[Mapping[str, Any]]:
    return list(tasks_in(yaml.safe_load(path.read_text()) or []))


FILES = sorted(path for folder in ("tasks", "handlers") for path in ROOT.glob(f"roles/*/{folder}/*.yml"))


def removed_by(task: Mapping[str, Any]) -> list[str]:
    """The paths that a task removes, before their variables are filled in."""
    file = task.get("ansible.builtin.file") or {}
    if file.get("state") == "absent":
        loop = task.get("loop", [])
        items = [loop] if isinstance(loop, str) else [str(item) for item in loop]
        return [str(file["path"]).replace("{{ item }}", item) for item in items] or [str(file["path"])]
    for name in COMMANDS:
        words = task.get(name)
        argv = words.get("argv", words.get("cmd", "").split()) if isinstance(words, Mapping) else str(words).split()
        if words and any(re.fullmatch(r"(/\S*/)?(rm|rmdir|unlink)", str(word)) for word in argv):
            return [str(argv[-1])]
    return []


def is_guarded(task: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a task depends on a mark that an earlier one has looked for."""
    condition = f"{task.get('when', '')} {task.get('loop', '')}"
    looks = [one for one in others if "ansible.builtin.stat" in one and one.get("register")]
    return any(
        one["register"] in condition
        and "stat.exists" in condition
        and any(mark in one["ansible.builtin.stat"]["path"] for mark in MARKS)
        for one in looks
    )


def is_harmless(task: Mapping[str, Any], others: Sequence[Mapping[str, Any]], *, is_teardown: bool) -> bool:
    if is_guarded(task, others):
        return True
    return all(OWN.fullmatch(path) or (not is_teardown and BELOW.search(path)) for path in removed_by(task))


def removals() -> list[Any]:
    found = [(path, task) for path in FILES for task in tasks_of(path) if removed_by(task)]
    return [pytest.param(path, task, id=f"{path.parts[-3]}: {task['name']}") for path, task in found]


@pytest.mark.parametrize(("path", "task"), removals())
def test_role_removes_what_is_its_own(path: Path, task: Mapping[str, Any]) -> None:
    assert is_harmless(task, tasks_of(path), is_teardown=path.name == "teardown.yml")


def test_all_roles_that_remove_folders_are_looked_at() -> None:
    assert {path.parts[-3] for path, _task in (one.values for one in removals())} >= {"redis", "console", "monitoring"}


@pytest.mark.parametrize("role", ["redis", "console", "monitoring"])
def test_removal_of_a_folder_needs_its_mark(role: str) -> None:
    others = tasks_of(ROOT / f"roles/{role}/tasks/teardown.yml")
    guarded = [task for task in others if removed_by(task) and is_guarded(task, others)]
    assert guarded
    for task in guarded:
        bare = {key: value for key, value in task.items() if key != "when"}
        loop = str(bare.get("loop", "")).replace("stat.exists", "").replace("__console_marks", "")
        assert not is_harmless({**bare, "loop": loop}, others, is_teardown=True)


def test_commands_that_remove_redis_end() -> None:
    """One that hangs would hold the run, and those that wait for it."""
    slow = ("ansible.builtin.command", "ansible.builtin.systemd_service")
    waiting = [task for task in tasks_of(ROOT / "roles/redis/tasks/teardown.yml") if any(name in task for name in slow)]
    assert len(waiting) == 4
    assert [task["name"] for task in waiting if not task.get("timeout")] == []
