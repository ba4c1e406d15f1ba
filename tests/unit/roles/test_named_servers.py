# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""start.yml, stop.yml and restart.yml on hosts of which not every one has the named server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all

from .test_results import UNREACHABLE, Fleet


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two hosts with one server each, which does not run."""
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        fleet = Fleet(Path(folder))
        for host, server in {"one": "a", "two": "b"}.items():
            fleet.add(host)
            servers = [{"name": server, "model_id": server, "port": 1, "argv": ["/x"], "stop_timeout": 1}]
            record = {"profile": "p", "service_manager": "supervisor", "start": None, "servers": servers}
            write_all(state_files(str(fleet.folder / host), record)[0])
        yield fleet


def test_host_without_the_named_server_reports_it_and_succeeds(fleet: Fleet) -> None:
    output = fleet.run("stop", "-e", "servers=a")
    assert "two | not deployed here: a" in output and "one | not deployed" not in output
    assert "one | nothing to do" in output and "two | nothing to do" not in output


def test_server_that_no_host_has_is_refused_before_any_is_changed(fleet: Fleet) -> None:
    output = " ".join(fleet.run("stop", "-e", "servers=a,x", code=2).split())
    for deployed in "ab":
        assert f"No server x is deployed here; there are: {deployed}." in output
    assert "nothing to do" not in output


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_server_that_only_a_later_batch_has_is_found(fleet: Fleet, verb: str) -> None:
    output = fleet.run(verb, "-e", "servers=b", "-e", "servers_serial=1", "--check")
    assert "one | not deployed here: b" in output and "two | not deployed" not in output
    assert "not begun" not in output
    assert f"two | {'nothing to do' if verb == 'stop' else 'b: '}" in output and "one | nothing" not in output


def test_server_that_no_host_has_is_refused_before_the_first_batch(fleet: Fleet) -> None:
    output = " ".join(fleet.run("stop", "-e", "servers=a,x", "-e", "servers_serial=1", code=2).split())
    for deployed in "ab":
        assert f"No server x is deployed here; there are: {deployed}." in output
    assert "nothing to do" not in output


def test_unreachable_host_of_a_later_batch_does_not_stop_the_earlier_ones(fleet: Fleet) -> None:
    fleet.add("three", **UNREACHABLE)
    output = fleet.run("stop", "-e", "servers=a", "-e", "servers_serial=1", code=4)
    assert "one | nothing to do" in output and "two | not deployed here: a" in output


def test_batches_of_other_playbooks_are_judged_at_the_last_one(fleet: Fleet) -> None:
    """A play that uses the role alone has not looked on every host before its first batch."""
    path = fleet.folder / "own.yml"
    role = {"name": "magi.llama.servers", "tasks_from": "state.yml"}
    task = {"ansible.builtin.import_role": role, "vars": {"__servers_state": "stopped"}}
    play = {"hosts": "all", "gather_facts": False, "serial": 1, "tasks": [{"name": "Stop", **task}]}
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    output = fleet.run(str(path.with_suffix("")), "-e", "servers=b")
    assert "one | not deployed here: b" in output and "two | nothing to do" in output
    output = " ".join(fleet.run(str(path.with_suffix("")), "-e", "servers=x", code=2).split())
    assert "No server x is deployed here; there are: b." in output


def test_servers_have_to_be_named_before_a_host_is_reached(fleet: Fleet) -> None:
    fleet.add("three", **UNREACHABLE)
    for arguments, says in {
        (): "stop needs the variable servers",
        ("-e", "server=a"): "did you mean servers?",
        ("-e", "servers=all", "-e", "output=json"): "output is not a variable of stop",
    }.items():
        output = " ".join(fleet.run("stop", *arguments, code=2).split())
        assert says in output and "UNREACHABLE" not in output
    del fleet.hosts["three"]
    assert fleet.run("stop", "-e", "servers=all").count("| nothing to do") == 2
