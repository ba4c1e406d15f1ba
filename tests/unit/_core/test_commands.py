# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands have a time limit, all of them, and one that hangs does not hang the run."""

from __future__ import annotations

import ast
import os
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import commands
from ansible_collections.magi.llama.plugins.module_utils._core.commands import (
    CommandTimeoutError,
    Completed,
    output_of,
    run_command,
)
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
HELPER = PLUGINS / "module_utils" / "_core" / "commands.py"
# What starts a program in the standard library besides subprocess, and AnsibleModule's method, which has no limit.
STARTERS = {"system", "popen", "posix_spawn", "posix_spawnp", "create_subprocess_exec", "create_subprocess_shell"}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """The calls of attributes and names, with the last part of what is called."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [getattr(call.func, "attr", getattr(call.func, "id", "")) for call in found]
    return list(zip(names, found, strict=True))


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_commands_are_run_by_the_helper_alone(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert ("subprocess" in imported) == (path == HELPER)
    for name, call in calls(tree):
        assert name not in STARTERS and not name.startswith(("spawn", "execv", "execl")), f"line {call.lineno}"
        # AnsibleModule.run_command is an attribute; ours is a name.
        assert not (name == "run_command" and isinstance(call.func, ast.Attribute)), f"line {call.lineno}"
        assert not any(
            getattr(keyword.value, "value", "") is None for keyword in call.keywords if keyword.arg == "seconds"
        )


def test_helper_waits_with_a_limit() -> None:
    waits = [
        (name, {keyword.arg for keyword in call.keywords})
        for name, call in calls(ast.parse(HELPER.read_text(encoding="utf-8")))
        if name in ("communicate", "wait", "run", "call", "check_output", "check_call")
    ]
    assert sorted(waits) == [("communicate", {"timeout"}), ("wait", {"timeout"})]


def test_command_ends_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(CommandTimeoutError, match=r"sleep 60 & echo .* did not end within 0\.3 s") as caught:
        run_command(["/bin/sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], os.environ, 0.3)
    assert time.monotonic() - began < 10
    assert isinstance(caught.value, MagiError) and isinstance(caught.value, TimeoutError)
    child = int((tmp_path / "pid").read_text())
    stat = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and " Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not stat.exists() or " Z " in stat.read_text()


def test_command_that_survives_sigkill_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a process does that hangs in the kernel: nothing ends it.
    monkeypatch.setattr(commands, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(os, "killpg", lambda *_ids: None)
    started = []
    real = subprocess.Popen

    def popen(*arguments: object, **options: object) -> object:
        started.append(real(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    began = time.monotonic()
    try:
        with pytest.raises(CommandTimeoutError):
            run_command(["/bin/sleep", "30"], {}, 0.1)
        assert time.monotonic() - began < 5
    finally:
        started[0].kill()
        started[0].wait(10)


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["/bin/sh", "-c", "echo a"], "a\n"), (["/bin/sh", "-c", "exit 9"], None), (["/nonexistent"], None)],
)
def test_output_of_failed_program_is_none(command: list[str], expected: str | None) -> None:
    assert output_of(*command) == expected


def test_output_of_hanging_program_is_an_error() -> None:
    with pytest.raises(CommandTimeoutError):
        output_of("/bin/sleep", "30", seconds=0.1)


def test_command_result_has_exactly_this_environment() -> None:
    assert run_command(["/usr/bin/env"], {"A": "b"}) == Completed(0, "A=b\n", "")
