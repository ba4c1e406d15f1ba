# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents of playbooks and their exit codes, with hosts on this machine that run no servers."""

from __future__ import annotations

import getpass
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._core.version import COLLECTION_VERSION
from support import gguf_files as make
from support.runs import BIN, CHECKOUT, ROOT, execute, write_inventory

HEAD = {"schema_version": 1, "collection_version": COLLECTION_VERSION}
EMPTY = {**HEAD, "total_servers": 0, "ready_servers": 0, "servers": []}


def empty(name: str) -> dict[str, Any]:
    """A host's part of the status where nothing is deployed."""
    return {**EMPTY, "host": name, "address": name}


# Port 1 refuses.
UNREACHABLE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


class Fleet:
    """Hosts with a state directory each, and the last run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, dict[str, Any]] = {}

    def add(self, name: str, **variables: Any) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        self.hosts[name] = {
            **{"ansible_connection": "local", "ansible_python_interpreter": str(BIN / "python")},
            "servers_state_dir": str(self.folder / name),
            "registry_scan_paths": [str(self.folder / name)],
            "registry_path": str(self.folder / name / "registry.json"),
            **variables,
        }

    def run(self, playbook: str, *arguments: str, code: int = 0, **env: str) -> str:
        done = self.ended(playbook, *arguments, code=code, **env)
        return done.stdout + done.stderr

    def printed(self, playbook: str, *arguments: str, code: int = 0, **env: str) -> str:
        return self.ended(playbook, *arguments, code=code, **env).stdout

    def ended(self, playbook: str, *arguments: str, code: int, **env: str) -> subprocess.CompletedProcess[str]:
        inventory = self.folder / "hosts.yml"
        write_inventory(inventory, self.hosts)
        # An absolute path replaces the folder.
        command = [BIN / "ansible-playbook", "-i", inventory, ROOT / "playbooks" / f"{playbook}.yml", *arguments]
        env = {**CHECKOUT, "ANSIBLE_NOCOLOR": "1", **env}
        done = execute(command, self.folder, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    # A short path, as a state directory's has a limit.
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        yield Fleet(Path(folder))


def documents(output: str) -> list[dict[str, Any]]:
    """As docs/exit-codes.md has it: from a line that is { to the next that is }."""
    command = ["sed", "-n", "/^{$/,/^}$/p"]
    taken = subprocess.run(command, input=output, capture_output=True, text=True, check=True).stdout
    decoder, found = json.JSONDecoder(), []
    while taken.strip():
        document, end = decoder.raw_decode(taken)
        found.append(document)
        taken = taken[end:].lstrip()
    return found


@pytest.mark.parametrize("callback", ["default", "minimal"])
def test_status_json_of_several_hosts_is_one_document(fleet: Fleet, callback: str) -> None:
    fleet.add("one")
    fleet.add("two")
    output = fleet.run("status", "-e", "output=json", ANSIBLE_STDOUT_CALLBACK=callback)
    assert documents(output) == [{**HEAD, "kind": "status", "hosts": {"one": empty("one"), "two": empty("two")}}]
    assert "servers ready" not in output


@pytest.mark.parametrize("playbook", ["site", "scan", "status", "rollout"])
def test_output_of_json_callback_is_one_document(fleet: Fleet, playbook: str) -> None:
    """Nothing of ours is between: neither lines, nor the progress of a scan, nor a document."""
    for name in ("one", "two"):
        fleet.add(name)
        make.small_model(fleet.folder / name / f"{name}.gguf")
    callback = {
        "ANSIBLE_STDOUT_CALLBACK": "whole_json",
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/support/callbacks"),
    }
    tags = ["--tags", "registry"] if playbook == "site" else ["--check"]
    code = 2 if playbook == "rollout" else 0
    printed = fleet.printed(playbook, *tags, code=code, **callback)
    assert json.loads(printed)["hosts"] == ["one", "two"]
    printed = fleet.printed(playbook, *tags, "-e", "output=json", code=code, **callback)
    last = [entry["result"] for entry in json.loads(printed)["tasks"]]
    key = "rollout" if playbook == "rollout" else "document"
    (found,) = [result[key] for result in last if key in result]
    assert (found["kind"], list(found["hosts"])) == (playbook, ["one", "two"])


def test_status_json_of_one_host_has_the_same_shape(fleet: Fleet) -> None:
    fleet.add("one")
    assert documents(fleet.run("status", "-e", "output=json")) == [
        {**HEAD, "kind": "status", "hosts": {"one": empty("one")}}
    ]


def test_output_file_holds_what_is_printed(fleet: Fleet) -> None:
    fleet.add("one")
    fleet.add("two")
    path = fleet.folder / "not/there/yet/status.json"
    output = fleet.run("status", "-e", "output=json", "-e", f"output_file={path}")
    assert path.read_text() in output
    assert [file.name for file in path.parent.iterdir()] == ["status.json"]
    # With the table it is written too.
    path.unlink()
    assert "0 of 0 servers ready" in fleet.run("status", "-e", f"output_file={path}")
    assert json.loads(path.read_text()) == documents(output)[0]


def test_unwritable_output_file_is_named(fleet: Fleet) -> None:
    fleet.add("one")
    assert "output_file /proc/x/status.json cannot" in fleet.run(
        "status", "-e", "output_file=/proc/x/status.json", code=2
    )


@pytest.mark.parametrize("given", ["output=json", "output_file=status.json"])
def test_failed_and_unreachable_hosts_are_in_the_document(fleet: Fleet, given: str) -> None:
    fleet.add("away", **UNREACHABLE)
    fleet.add("broken")
    fleet.add("good")
    (fleet.folder / "broken/deployment.json").write_text("{")
    output = fleet.run("status", "-e", given, code=4)
    path = fleet.folder / "status.json"
    hosts = (json.loads(path.read_text()) if path.exists() else documents(output)[0])["hosts"]
    assert list(hosts) == ["away", "broken", "good"]
    assert "onnect" in hosts["away"]["error"]
    assert "deployment.json is damaged" in hosts["broken"]["error"]
    assert hosts["broken"]["task"] == "Read the status of the servers"
    assert hosts["good"] == empty("good")
    assert (hosts["away"]["host"], hosts["away"]["address"]) == ("away", "127.0.0.1")


def test_only_host_that_fails_is_in_the_document(fleet: Fleet) -> None:
    fleet.add("one", **UNREACHABLE)
    assert "error" in documents(fleet.run("status", "-e", "output=json", code=4))[0]["hosts"]["one"]
    fleet.add("one")
    (fleet.folder / "one/deployment.json").write_text("{")
    assert "error" in documents(fleet.run("status", "-e", "output=json", code=2))[0]["hosts"]["one"]


def test_exit_codes_with_table_are_those_with_json(fleet: Fleet) -> None:
    fleet.add("good")
    fleet.add("one")
    (fleet.folder / "one/deployment.json").write_text("{")
    assert "good | 0 of 0 servers ready" in fleet.run("status", code=2)
    fleet.add("one", **UNREACHABLE)
    assert "good | 0 of 0 servers ready" in fleet.run("status", code=4)


def test_scan_json_is_the_registry_of_each_host(fleet: Fleet) -> None:
    for name in ("one", "two"):
        fleet.add(name)
        make.small_model(fleet.folder / name / f"{name}.gguf")
    output = fleet.run("scan", "-e", "output=json")
    document = documents(output)[0]
    assert document["kind"] == "scan"
    assert document["hosts"] == {
        name: json.loads((fleet.folder / name / "registry.json").read_text()) for name in ("one", "two")
    }
    assert "[1/5]" not in output


def test_facts_of_hosts_are_apart(fleet: Fleet) -> None:
    """What the first task returns for all hosts must not be shared by them."""
    for name in ("one", "two"):
        fleet.add(name)
        make.small_model(fleet.folder / name / f"{name}.gguf")
    output = fleet.run("scan")
    for name in ("one", "two"):
        assert f"{name} | [1/5] discovery       1 models in {fleet.folder}/{name}\n" in output


def test_last_task_names_the_task_that_failed_and_not_its_error_again(fleet: Fleet) -> None:
    fleet.add("broken")
    (fleet.folder / "broken/deployment.json").write_text("{")
    output = fleet.run("status", code=2)
    first, _, last = output.partition("TASK [Show every host")
    assert "deployment.json is damaged" in first and "deployment.json is damaged" not in last
    assert 'The playbook stopped here at the task "Read the status of the servers".' in last.replace("\\", "")


def test_verify_without_servers_fails_with_document(fleet: Fleet) -> None:
    fleet.add("one")
    document = documents(fleet.run("verify", "-e", "output=json", code=2))[0]
    assert document["kind"] == "verify"
    assert "Run site.yml first" in document["hosts"]["one"]["error"]


@pytest.mark.parametrize(
    ("playbook", "given", "says"),
    [
        ("status", "fail_on=degrade", 'fail_on is "degrade": it takes degraded, drift, or several of them'),
        ("rollout", "rollout_serial=abc", 'rollout_serial is "abc": it is a list such as'),
    ],
)
def test_invalid_variable_fails_before_a_host_is_reached(fleet: Fleet, playbook: str, given: str, says: str) -> None:
    """No host can be reached, and none is tried."""
    fleet.add("one", **UNREACHABLE)
    output = fleet.run(playbook, "-e", given, code=2)
    assert says in " ".join(output.split()), output
    assert "UNREACHABLE" not in output


def test_invalid_variable_of_one_host_fails_all(fleet: Fleet) -> None:
    fleet.add("one", **UNREACHABLE)
    fleet.add("two", verify_timeout="later", **UNREACHABLE)
    output = fleet.run("verify", code=2)
    assert 'verify_timeout is "later": it is a number' in output
    assert "UNREACHABLE" not in output


def test_output_variable_of_other_plays_is_ignored(fleet: Fleet) -> None:
    """There it may be anyone's variable."""
    fleet.add("one")
    play = {"hosts": "all", "gather_facts": False, "vars": {"output": "json"}}
    role = {"import_role": {"name": "magi.llama.servers", "tasks_from": "status.yml"}}
    (fleet.folder / "own.yml").write_text(json.dumps([{**play, "tasks": [role]}]))
    assert "0 of 0 servers ready" in fleet.run(str(fleet.folder / "own"))


@pytest.mark.parametrize("playbook", ["start", "stop", "restart"])
def test_batch_with_a_failed_host_is_the_last_one(fleet: Fleet, playbook: str) -> None:
    for name in ("one", "two", "three", "four"):
        fleet.add(name)
    # A file is not a folder, so that this host fails.
    (fleet.folder / "file").write_text("")
    fleet.hosts["two"]["servers_state_dir"] = str(fleet.folder / "file")
    output = fleet.run(playbook, "-e", "servers=all", "-e", "servers_serial=2", code=2)
    begun = {host for host in fleet.hosts if f"{host} | nothing to do" in output}
    assert begun == {"one"}
    assert "three | not begun, as two failed" in output
    # In one batch, the others are not held up.
    output = fleet.run(playbook, "-e", "servers=all", code=2)
    assert {host for host in fleet.hosts if f"{host} | nothing to do" in output} == {"one", "three", "four"}


def test_site_in_batches_prints_one_document_of_all_hosts(fleet: Fleet) -> None:
    for name in ("one", "two", "three"):
        fleet.add(name)
        make.small_model(fleet.folder / name / f"{name}.gguf")
    output = fleet.run("site", "-e", "servers_serial=1", "-e", "output=json", "--tags", "registry")
    (document,) = documents(output)
    assert list(document["hosts"]) == ["one", "two", "three"]


def test_site_of_several_hosts_ends_with_a_line_for_each(fleet: Fleet) -> None:
    for name in ("one", "two"):
        fleet.add(name)
        make.small_model(fleet.folder / name / f"{name}.gguf")
    fleet.add("away", **UNREACHABLE)
    fleet.add("broken", registry_scan_paths=["/not/there"])
    output = fleet.run("site", "--tags", "registry", code=4)
    lines = output.partition("fleet  4 hosts: 2 ok, 1 failed, 1 unreachable\n")[2].splitlines()
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["one", "-", "ok"],
        ["two", "-", "ok"],
        ["away", "-", "unreachable"],
        ["broken", "-", "failed"],
    ]
    assert "/not/there" in lines[4]
    # Not of a single host, and once for all batches.
    assert "fleet  " not in fleet.run("site", "--tags", "registry", "--limit", "one")
    assert fleet.run("site", "--tags", "registry", "--limit", "one,two", "-e", "servers_serial=1").count("fleet  ") == 1


START_OVER = "Run the playbook from its beginning"


@pytest.mark.parametrize(
    ("playbook", "arguments", "says"),
    [
        ("site", ["--skip-tags", "runtime"], "Run site.yml, with --tags servers"),
        ("alone", [], "magi.llama.runtime and magi.llama.registry before magi.llama.servers"),
        ("site", ["--start-at-task", "Plan the servers"], START_OVER),
        # What it shows is registered by a task before it.
        ("site", ["--start-at-task", "Show what was found"], START_OVER),
        ("verify", ["--start-at-task", "Probe every server with a few tokens"], START_OVER),
        ("rollout", ["--start-at-task", "Show every host"], START_OVER),
    ],
)
def test_run_without_its_first_tasks_says_what_to_run(
    fleet: Fleet, playbook: str, arguments: list[str], says: str
) -> None:
    fleet.add(
        "one",
        servers_user=getpass.getuser(),
        servers_allow_root=True,
        servers_service_manager="supervisor",
        servers_supervisord_path=str(BIN / "supervisord"),
    )
    make.small_model(fleet.folder / "one" / "one.gguf")
    alone = fleet.folder / "alone.yml"
    alone.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "roles": ["magi.llama.servers"]}]))
    path = str(alone.with_suffix("")) if playbook == "alone" else playbook
    output = fleet.run(path, "--check", *arguments, code=2)
    assert says in " ".join(output.split()), output
    assert "Traceback" not in output
