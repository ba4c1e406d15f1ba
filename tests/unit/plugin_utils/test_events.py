# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events of runs: real runs of ansible-playbook against the schema, and how each of them ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._output.event import load_event
from support.runs import BIN, CHECKOUT, ROOT, execute
from support.schemas import errors

pytestmark = pytest.mark.slow

ENABLED = {**CHECKOUT, "ANSIBLE_CALLBACKS_ENABLED": "magi.llama.events"}
LOCAL = ("-i", "n1,n2,n3,n4,n5,n6,n7,n8", "-c", "local", "-f", "8", "-e", "ansible_python_interpreter=/usr/bin/python3")
# It does not need a host: the line is shown on the controller.
SHOW = "{magi.llama.report: {step: text, text: '{{ item }}'}, loop: '{{ range(20) | list }}'}"


def play(folder: Path, *tasks: str, **keywords: Any) -> Path:
    path = folder / "play.yml"
    given = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in {"gather_facts": False, **keywords}.items())
    path.write_text("- hosts: all\n" + given + "  tasks:\n" + "".join(f"    - {task}\n" for task in tasks))
    return path


def run(
    folder: Path, playbook: str | Path, *arguments: str, code: int | None = 0, enabled: bool = True, **environment: str
) -> tuple[list[dict[str, Any]], str]:
    """The events of a run, each one valid, and what it printed."""
    command = [BIN / "ansible-playbook", *LOCAL, playbook, *arguments]
    done = execute(
        command, folder, **{**(ENABLED if enabled else CHECKOUT), "MAGI_EVENTS": "events.jsonl", **environment}
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    path = folder / "events.jsonl"
    return (events(path) if path.exists() else []), done.stdout + done.stderr


def events(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    for event in found:
        assert errors("event", event) == []
        load_event(event)
    return found


def of(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["data"] for event in found if event["type"] == kind]


def test_events_of_many_forks_are_whole_lines_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    found, _output = run(tmp_path, play(tmp_path, SHOW), MAGI_RUN_ID="run-1")
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))
    assert {event["run"] for event in found} == {"run-1"}
    lines = [(event["host"], event["data"]["text"]) for event in found if event["type"] == "line"]
    assert sorted(lines) == sorted((f"n{host}", str(number)) for host in range(1, 9) for number in range(20))
    assert stat.S_IMODE((tmp_path / "events.jsonl").stat().st_mode) == 0o600
    assert [event["type"] for event in found[:3]] == ["run_started", "play_started", "task_started"]
    assert found[1]["data"]["hosts"] == [f"n{host}" for host in range(1, 9)]
    ok = {"ok": 1, "changed": 0, "failed": 0, "unreachable": 0}
    assert (found[-1]["type"], found[-1]["data"]) == (
        "run_ended",
        {"rc": 0, "hosts": {f"n{host}": ok for host in range(1, 9)}},
    )


def test_start_has_what_the_run_was_given(tmp_path: Path) -> None:
    arguments = ("--check", "--limit", "n1", "-e", "profile=pair")
    found, _output = run(tmp_path, play(tmp_path, SHOW), *arguments)
    started = found[0]["data"]
    assert {key: started[key] for key in ("playbook", "profile", "check", "limit")} == {
        **{"playbook": "play.yml", "profile": "pair", "check": True, "limit": "n1"},
    }
    assert all(event["check"] for event in found)


FAIL = "{name: Fail, ansible.builtin.fail: {msg: \"a\\e[31m\\u202eb\"}, when: inventory_hostname == 'n1'}"
LOST = "{name: Lost, ansible.builtin.ping: {}, vars: {ansible_connection: ssh, ansible_host: '256.0.0.1'}%s}"
ENDINGS = {
    "a task fails": ([FAIL, SHOW], 2),
    "a failure is ignored": ([FAIL[:-1] + ", ignore_errors: true}"], 0),
    "a failure is rescued": (["{block: [" + FAIL + "], rescue: [{ansible.builtin.debug: {}}]}"], 0),
    "a host is lost": ([LOST % ""], 4),
    "a lost host is ignored": ([LOST % ", ignore_unreachable: true"], 0),
    "all hosts fail": (["{ansible.builtin.fail: {}}", SHOW], 2),
}


@pytest.mark.parametrize(("tasks", "code"), ENDINGS.values(), ids=ENDINGS)
def test_end_has_the_exit_code(tmp_path: Path, tasks: list[str], code: int) -> None:
    found, output = run(tmp_path, play(tmp_path, *tasks), "--limit", "n1,n2", code=code)
    end = found[-1]
    assert (end["type"], end["data"]["rc"]) == ("run_ended", code), output
    assert sorted(end["data"]["hosts"]) == ["n1", "n2"]
    if code == 2:
        assert end["data"]["hosts"]["n1"]["failed"] == 1
    assert {event["type"] for event in found} & {"task_failed", "unreachable"}


def test_several_playbooks_and_plays_are_one_run(tmp_path: Path) -> None:
    path = play(tmp_path, FAIL)
    path.write_text(path.read_text() + path.read_text().replace("'n1'", "'n2'"))
    found, _output = run(tmp_path, path, str(path), code=2)
    assert [event["type"] for event in found].count("run_started") == 1
    assert [event["type"] for event in found].count("run_ended") == 1
    # The second playbook is not begun.
    assert len(of("play_started", found)) == 2
    assert found[0]["data"]["playbook"] == "play.yml play.yml"


def test_run_that_ansible_itself_ends_has_no_exit_code(tmp_path: Path) -> None:
    found, _output = run(tmp_path, play(tmp_path, SHOW, serial="{{ nothing }}"), code=None)
    assert [event["type"] for event in found] == ["run_started", "run_ended"]
    assert found[-1]["data"] == {"rc": None, "hosts": {}}


def test_failure_is_shown_without_control_characters(tmp_path: Path) -> None:
    found, _output = run(tmp_path, play(tmp_path, FAIL), code=2)
    assert of("task_failed", found) == [{"task": "Fail", "msg": r"a\x1b[31m\u202eb", "fix": None}]


HIDDEN = (
    "{name: Hidden, ansible.builtin.fail: {msg: s3cret}, no_log: true, ignore_errors: true}",
    "{name: Hidden, ansible.builtin.command: 'false {{ item }}', loop: [s3cret], no_log: true, ignore_errors: true}",
    "{name: Hidden, magi.llama.report: {step: [s3cret]}, no_log: true, ignore_errors: true}",
)


@pytest.mark.parametrize("task", HIDDEN)
def test_result_with_no_log_is_not_shown(tmp_path: Path, task: str) -> None:
    found, _output = run(tmp_path, play(tmp_path, task), "--limit", "n1")
    assert of("task_failed", found)[0]["msg"] == "The result is hidden, as no_log is set."
    assert "s3cret" not in json.dumps(found)


def test_values_of_vaults_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p")
    vault = [
        BIN / "ansible-vault",
        "encrypt_string",
        "--vault-password-file",
        "password",
        "--name",
        "inline",
        "s3cret1",
    ]
    inline = execute(vault, tmp_path).stdout
    files = {"plain.yml": f"nested:\n  - one: 1\n{indented(inline, 4)}", "all.yml": "whole: [s3cret2]\n"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    encrypted = execute([BIN / "ansible-vault", "encrypt", "--vault-password-file", "password", "all.yml"], tmp_path)
    assert encrypted.returncode == 0, encrypted.stderr
    text = "{{ nested[0].inline }} and {{ whole[0] }}"
    tasks = (f"{{ansible.builtin.fail: {{msg: 'no {text}'}}}}",)
    path = play(tmp_path, *tasks, vars_files=["plain.yml", "all.yml"])
    found, output = run(tmp_path, path, "--vault-password-file", "password", "--limit", "n1", code=2)
    # Ansible itself shows them.
    assert "no s3cret1 and s3cret2" in output
    assert of("task_failed", found)[0]["msg"] == "no … and …"


def indented(text: str, spaces: int) -> str:
    """The lines of a mapping in a list."""
    first, *rest = text.splitlines()
    return "\n".join([" " * spaces + first, *(" " * (spaces + 4) + line.strip() for line in rest), ""])


BAD = {
    "MAGI_EVENTS is 'http://h/e': give the path of a file": {"MAGI_EVENTS": "http://user:s3cret@h/e"},
    "/missing/events cannot be written: No such file or directory": {"MAGI_EVENTS": "/missing/events"},
    "Is a directory": {"MAGI_EVENTS": "/"},
    "not a regular file": {"MAGI_EVENTS": "/dev/null"},
    "MAGI_RUN_ID is 'a b': give": {"MAGI_RUN_ID": "a b"},
    "MAGI_EVENTS: redis://127.0.0.1:1/0 does not do it: Error 111": {"MAGI_EVENTS": "redis://:s3cret@127.0.0.1:1/0"},
}


@pytest.mark.parametrize(("text", "environment"), BAD.items(), ids=BAD)
def test_wrong_setting_is_refused_by_the_first_task(tmp_path: Path, text: str, environment: dict[str, str]) -> None:
    arguments = ("--limit", "n1", "-e", f"servers_state_dir={tmp_path}/state")
    found, output = run(tmp_path, ROOT / "playbooks/status.yml", *arguments, code=2, **environment)
    assert text in " ".join(output.split()), output
    assert "Nothing was changed." in output
    assert (found, "s3cret" in output, (tmp_path / "state").exists()) == ([], False, False)


PLAYBOOKS = (ROOT / "playbooks/status.yml", "magi.llama.status", "imported.yml")


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=str)
@pytest.mark.parametrize("enabled", [False, True])
def test_playbooks_of_the_collection_need_only_the_variable(
    tmp_path: Path, playbook: str | Path, enabled: bool
) -> None:
    (tmp_path / "imported.yml").write_text("- import_playbook: magi.llama.status\n")
    arguments = ("--limit", "n1", "-e", f"servers_state_dir={tmp_path}/state")
    found, _output = run(tmp_path, playbook, *arguments, code=None, enabled=enabled)
    assert [event["type"] for event in found].count("run_started") == 1
    assert found[-1]["type"] == "run_ended"


def test_other_playbooks_warn_where_the_callback_is_not_enabled(tmp_path: Path) -> None:
    found, output = run(tmp_path, play(tmp_path, SHOW), enabled=False)
    assert found == []
    assert output.count("set ANSIBLE_CALLBACKS_ENABLED=magi.llama.events") == 1


def test_nothing_happens_without_the_variable(tmp_path: Path) -> None:
    found, output = run(tmp_path, play(tmp_path, SHOW), MAGI_EVENTS="")
    assert (found, "MAGI_EVENTS" in output) == ([], False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 99), (signal.SIGTERM, 143)])
def test_interrupted_run_has_its_end(tmp_path: Path, number: int, code: int) -> None:
    wait = "{name: Wait, ansible.builtin.command: sleep 60}"
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    kept |= {**ENABLED, "HOME": str(tmp_path), "MAGI_EVENTS": "events.jsonl"}
    process = subprocess.Popen(
        [BIN / "ansible-playbook", *LOCAL, "--limit", "n1,n2", play(tmp_path, SHOW, wait)],
        cwd=tmp_path,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    path = tmp_path / "events.jsonl"
    while not path.exists() or '"name":"Wait"' not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Where it arrives while a worker process is forked, Ansible itself does not end.
    time.sleep(1)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode in (code, -number), output
    found = events(path)
    ok = {"ok": 1, "changed": 0, "failed": 0, "unreachable": 0}
    assert (found[-1]["type"], found[-1]["data"]) == ("run_ended", {"rc": code, "hosts": {"n1": ok, "n2": ok}})
