# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How make docker-test calls Compose, and what it reads in .env."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import docker_test
import pytest
from compose_stack import IMAGE, ROOT, Stack, StackError, read_env


class Calls:
    """The commands, and what each answers: the running containers, and whether the image is known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, running: str = "", image_status: int = 0) -> None:
        self.made: list[list[str]] = []
        self.folders: list[Any] = []
        self._running, self._image_status = running, image_status
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.made.append(command)
        self.folders.append(options.get("cwd"))
        status = self._image_status if command[:3] == ["docker", "image", "inspect"] else 0
        return subprocess.CompletedProcess(command, status, self._running if "ps" in command else "", "")


def test_compose_finds_its_files_and_name_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    Stack(["docker", "compose"], "docker").call("ps")
    assert (calls.made, calls.folders) == ([["docker", "compose", "ps"]], [ROOT])


def test_what_is_given_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    Stack(["docker-compose"], "docker", Path("/e"), "mine", (Path("/a.yml"),)).call("ps")
    assert calls.made == [["docker-compose", "-p", "mine", "--env-file", "/e", "-f", "/a.yml", "ps"]]


def test_running_containers_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, running="0123\n")
    assert Stack(["docker", "compose"], "docker").up() is True
    assert calls.made[1:] == [["docker", "compose", "up", "-d", "--no-build", "--no-recreate"]]


@pytest.mark.parametrize("image_status", [0, 1])
def test_the_image_is_built_first_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, image_status: int) -> None:
    calls = Calls(monkeypatch, image_status=image_status)
    assert Stack(["docker", "compose"], "docker", variables={"MAGI_IMAGE": IMAGE}).up() is False
    build = [["docker", "compose", "build", "magi"]] if image_status else []
    up = [["docker", "compose", "up", "-d", "--no-build"]]
    assert calls.made[1:] == [["docker", "image", "inspect", IMAGE], *build, *up]


def test_a_compose_that_does_not_end_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(StackError, match=r"^docker compose up -d has not ended after 5 s$"):
        Stack(["docker", "compose"], "docker").call("up", "-d", timeout=5)
    monkeypatch.setattr(docker_test.compose_stack, "find_compose", lambda: ("docker", ["docker", "compose"]))
    assert docker_test.main([]) == 1
    assert "docker compose ps -q has not ended after 300 s" in capsys.readouterr().out


def test_a_password_is_on_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stack = Stack(["docker", "compose"], "docker")
    starts = iter(["first", "first", "second"])

    def kill(*_: Any) -> None:
        said.append("kill")
        raise StackError("the container has ended, and this call with it")

    monkeypatch.setattr(Stack, "run_in", lambda _self, _service, *command: said.append(" ".join(command)) or "3")
    monkeypatch.setattr(Stack, "kill", kill)
    monkeypatch.setattr(Stack, "started", lambda *_: next(starts))
    monkeypatch.setattr(Stack, "wait_until_healthy", lambda *_: said.append("healthy"))
    monkeypatch.setattr(Stack, "console", lambda *_: docker_test.compose_stack.Answer(200, b""))
    docker_test.kill_redis(stack)
    # Healthy is asked after the next start.
    assert next(starts, None) is None and said[1:3] == ["kill", "healthy"]
    assert 'REDISCLI_AUTH="$(cat' in said[0] and " -a " not in said[0]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("MODELS=${HOME}/models", "/home/mine/models"),
        ("MODELS=$HOME/models # here", "/home/mine/models"),
        ('export MODELS = "${NOTHING:-/srv}/a b"', "/srv/a b"),
        ("MODELS='$HOME/#1' # literal", "$HOME/#1"),
        ("BASE=/srv\nMODELS=$BASE/m", "/srv/m"),
        ("MODELS=", ""),
    ],
)
def test_env_is_read_as_compose_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, value: str
) -> None:
    monkeypatch.setenv("HOME", "/home/mine")
    (tmp_path / ".env").write_text(f"# a comment\n{line}\n")
    assert read_env(tmp_path / ".env")["MODELS"] == value


def test_this_shells_variables_count_more_than_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MAGI_GATEWAY_PORT=8071\n")
    stack = Stack(["docker", "compose"], "docker", tmp_path / ".env")
    assert stack.gateway_port == 8071
    monkeypatch.setenv("MAGI_GATEWAY_PORT", "8072")
    assert stack.gateway_port == 8072
