# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that change servers while a gateway cannot be reached."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._core.ownership import MARK
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import LEASE_SECONDS, holder
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import FLEET
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all
from support.runs import ROOT

from .test_results import UNREACHABLE, Fleet

UNREACHED = "The gateways gw2 were not reached, and"

# The content of a host's lock once another run has taken it over and has ended.
LOST = "{{ {'lost': [(lookup('ansible.builtin.file', servers_state_dir ~ '/run.lock') | from_json).id]} | to_json }}"


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A host with a server that does not run, a gateway that is not set up, and one that cannot be reached."""
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        fleet = Fleet(Path(folder))
        for name in ("one", "gw1"):
            fleet.add(name)
        fleet.add("gw2", **UNREACHABLE)
        fleet.hosts["gw1"]["gateway_state_dir"] = f"{folder}/g"
        groups = {"models": {"hosts": {"one": {}}}, "gateways": {"hosts": {"gw1": {}, "gw2": {}}}}
        (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": groups}}))
        deploy(fleet, "one")
        yield fleet


def deploy(fleet: Fleet, host: str) -> None:
    servers = [{"name": "a", "model_id": "a", "port": 1, "argv": ["/x"], "stop_timeout": 1}]
    record = {"profile": "p", "service_manager": "supervisor", "start": None, "servers": servers}
    write_all(state_files(str(fleet.folder / host), record)[0])


def run(fleet: Fleet, playbook: str, *arguments: str, code: int = 0) -> str:
    return " ".join(fleet.run(playbook, "-i", str(fleet.folder / "groups.yml"), *arguments, code=code).split())


def test_servers_are_not_changed_while_a_gateway_is_not_reached(fleet: Fleet) -> None:
    output = run(fleet, "stop", "-e", "servers=a", code=2)
    assert f"{UNREACHED} would send requests to servers that are stopped. Nothing was changed: reach them" in output
    assert "nothing to do" not in output
    # The group of a run is all that counts: without the gateway it is done.
    del fleet.hosts["gw2"]
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": {"gateways": {"hosts": {"gw1": {}}}}}}))
    assert "nothing to do" in run(fleet, "stop", "-e", "servers=a")


def test_what_would_be_done_is_shown_without_a_gateway(fleet: Fleet) -> None:
    output = run(fleet, "stop", "-e", "servers=a", "--check")
    assert UNREACHED not in output and "nothing to do" in output


def test_gateways_are_not_needed_to_show_what_would_be_changed(fleet: Fleet) -> None:
    output = run(fleet, "teardown", "--check")
    assert UNREACHED not in output


@pytest.mark.parametrize(
    ("name", "says"),
    [("fleet.json", "fleet.json"), ("run/admin.sock", "run/admin.sock: it is not a socket.")],
    ids=["fails", "does not answer"],
)
def test_gateway_that_fails_ends_every_host_in_its_own_words(fleet: Fleet, name: str, says: str) -> None:
    del fleet.hosts["gw2"]
    fleet.add("two")
    deploy(fleet, "two")
    groups = {"models": {"hosts": {"one": {}, "two": {}}}, "gateways": {"hosts": {"gw1": {}}}}
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": groups}}))
    broken = fleet.folder / "g" / name
    broken.parent.mkdir(parents=True, exist_ok=True)
    (fleet.folder / "g/gateway.json").write_text("{}")
    broken.write_text("x")
    output = run(fleet, "restart", "-e", "servers=a", code=2)
    for host in ("one", "two"):
        assert re.search(rf"\[{host}\]: FAILED! => [^}}]*gw1: ", output), output
    assert says in output and "These gateways would send requests to servers that are stopped." in output
    assert "undefined" not in output and "restarted" not in output


def test_lock_is_held_until_the_gateways_are_in_step(fleet: Fleet) -> None:
    """Another run may change the host without it, and the gateways would get what this one has listed before that."""
    output = run(fleet, "site", code=2)
    assert UNREACHED in output
    asked, released = (
        output.rindex(f": {name}]") for name in ("Check that every gateway was reached", "Release the lock")
    )
    assert asked < released
    assert "ok: [one]" in output[released:].partition("PLAY RECAP")[0]


def test_gateways_are_changed_while_no_host_with_servers_is_reached(fleet: Fleet) -> None:
    """Keys of clients can be revoked, and the gateways keep the servers that they know."""
    fleet.hosts["one"] |= UNREACHABLE
    del fleet.hosts["gw2"]
    groups = {"models": {"hosts": {"one": {}}}, "gateways": {"hosts": {"gw1": {}}}}
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": groups}}))
    server = {"name": "a", "model_id": "a", "kind": "model", "listens": "0.0.0.0", "port": 1, "slots": 1}
    known = {"hosts": {"one": {"address": "192.0.2.1", "servers": [server]}}}
    (fleet.folder / "g").mkdir()
    (fleet.folder / "g/manifest.json").write_text(json.dumps(MARK))
    (fleet.folder / "g/fleet.json").write_text(json.dumps(FLEET.stamp(known)))
    output = run(fleet, "gateway", "--check", code=2)
    assert "gateway http://127.0.0.1:8070: started, 1 server of 1 model" in output
    assert "one: it was not reached, so the gateway keeps what it knows of its servers." in output
    assert "one was not reached, so the gateways keep what they know of its servers. Run gateway.yml again" in output


def test_rollback_changes_the_gateways_under_the_lock(fleet: Fleet) -> None:
    output = run(fleet, "rollback", code=2)
    as_before, released = (output.rindex(text) for text in ("send requests as before", ": Release the lock]"))
    assert as_before < released
    assert "ok: [one]" in output[released:].partition("PLAY RECAP")[0]


def test_teardown_changes_the_gateways_before_the_lock_is_gone(fleet: Fleet) -> None:
    del fleet.hosts["gw2"]
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": {"gateways": {"hosts": {"gw1": {}}}}}}))
    output = run(fleet, "teardown")
    asked, removed = (
        output.rindex(f": {name}]")
        for name in ("Ask the gateways", "Stop the servers and remove everything created for them")
    )
    assert asked < removed
    assert "gateway gw1: not set up yet" in output[:removed]


def test_later_batches_do_not_tell_gateways_what_was_listed_under_a_lock_that_is_released(fleet: Fleet) -> None:
    del fleet.hosts["gw2"]
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": {"gateways": {"hosts": {"gw1": {}}}}}}))
    left = {
        "ansible.builtin.set_fact": {"__gateway_members": {"members": {"address": "", "servers": []}, "api_keys": []}}
    }
    check = {"ansible.builtin.assert": {"that": "__gateway_members == {}"}}
    play = {"hosts": "one", "gather_facts": False}
    # It fails as the host has no models.
    batch = [{"ansible.builtin.import_tasks": str(ROOT / "playbooks/tasks/deploy.yml")}]
    for plays in (
        [{**play, "tasks": [left]}, {"import_playbook": str(ROOT / "playbooks/stop.yml")}, {**play, "tasks": [check]}],
        [{**play, "vars": {"__llama_playbook": "site"}, "tasks": [left, {"block": batch, "rescue": [check]}]}],
    ):
        (fleet.folder / "own.yml").write_text(json.dumps(plays))
        assert "All assertions passed" in run(fleet, str(fleet.folder / "own"), "-e", "servers=a")


def test_hosts_that_wait_for_their_turn_keep_their_locks(fleet: Fleet) -> None:
    """A step of other hosts may take longer than a lock lasts: draining alone may take as long as that."""
    fleet.add("two")
    del fleet.hosts["gw2"]
    groups = {"models": {"hosts": {"one": {}, "two": {}}}, "gateways": {"hosts": {"gw1": {}}}}
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": groups}}))
    step = {"drains": False, "needs": False, "readies": False}
    turns = {"steps": [step], "waves": {"one": [None], "two": [None]}}
    variables = str(ROOT / "roles/servers/vars/main.yml")
    lock = {"magi.llama.run_lock": {"state_dir": "{{ servers_state_dir }}"}}
    wave = {"ansible.builtin.include_tasks": str(ROOT / "roles/servers/tasks/wave.yml"), "vars": {"__servers_step": 0}}
    # As in deploy.yml, state.yml and teardown.yml.
    interval = {"readiness_check_interval": "{{ omit }}"}
    # Servers there start more slowly than on the first one.
    fleet.hosts["two"]["__servers_own_start_seconds"] = 650
    for start, given, forks, least in (
        ({"max_startup_time": 700}, {}, "5", 1300),
        # One host after another.
        (interval, {"gateway_drain_timeout": 1000}, "1", 300 + 2 * (1000 + 650)),
        ({}, {"servers_max_startup_time": 900}, "2", 1500),
    ):
        known = {"__servers_start": start, "servers_max_startup_time": "", "__servers_turns": turns, **given}
        play = {"hosts": "models", "gather_facts": False, "vars_files": [variables]}
        (fleet.folder / "own.yml").write_text(
            json.dumps([{**play, "vars": known, "tasks": [lock, {**wave, "vars": {**wave["vars"], **known}}]}])
        )
        run(fleet, str(fleet.folder / "own"), "--forks", forks)
        for name in ("one", "two"):
            held = holder(str(fleet.folder / name), expired=True)
            assert held is not None and least - 30 < held.seconds_left <= least
            (fleet.folder / name / "run.lock").unlink()


def test_lock_lasts_as_usual_once_no_host_waits_for_its_turn(fleet: Fleet) -> None:
    """Killed after that, also after a step that failed, the run would block others for as long as a turn."""
    fleet.add("two")
    (fleet.folder / "groups.yml").write_text(json.dumps({"models": {"hosts": {"one": {}, "two": {}}}}))
    waves = yaml.safe_load((ROOT / "roles/servers/tasks/waves.yml").read_text())
    [change] = [task for task in waves if task["name"] == "Change the servers without downtime"]
    change |= {
        "block": [{"ansible.builtin.assert": {"that": "inventory_hostname == 'one'"}}],
        "rescue": [{"ansible.builtin.fail": {"msg": "This step failed."}}],
        "vars": {"__servers_turns": {"waves": {"one": [], "two": []}}},
    }
    lock = {"magi.llama.run_lock": {"state_dir": "{{ servers_state_dir }}", "lease": 1200}}
    (fleet.folder / "own.yml").write_text(
        json.dumps([{"hosts": "models", "gather_facts": False, "tasks": [lock, change]}])
    )
    assert "This step failed." in run(fleet, str(fleet.folder / "own"), code=2)
    for name in ("one", "two"):
        held = holder(str(fleet.folder / name), expired=True)
        assert held is not None and held.seconds_left <= LEASE_SECONDS


def test_run_that_has_lost_its_lock_goes_no_step_further(fleet: Fleet) -> None:
    """Another run has taken the lock over, changed the host, and ended meanwhile."""
    fleet.add("two")
    groups = {"models": {"hosts": {"one": {}, "two": {}}}, "gateways": {"hosts": {"gw1": {}}}}
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": groups}}))
    step = {"drains": False, "needs": False, "readies": False}
    known = {
        **{"__servers_turns": {"steps": [step], "waves": {"one": [None], "two": [None]}}, "__servers_step": 0},
        **{"__servers_start": {}, "servers_max_startup_time": ""},
    }
    tasks = [
        {"magi.llama.run_lock": {"state_dir": "{{ servers_state_dir }}"}},
        {
            "ansible.builtin.copy": {"dest": "{{ servers_state_dir }}/run.lock", "content": LOST},
            "when": "inventory_hostname == 'two'",
        },
        {"ansible.builtin.include_tasks": str(ROOT / "roles/servers/tasks/wave.yml"), "vars": known},
    ]
    play = {"hosts": "models", "gather_facts": False, "vars_files": [str(ROOT / "roles/servers/vars/main.yml")]}
    (fleet.folder / "own.yml").write_text(json.dumps([{**play, "vars": known, "tasks": tasks}]))
    output = run(fleet, str(fleet.folder / "own"), code=2)
    assert "[two]: FAILED! => " in output and "Another run has changed this host since" in output
    assert "[one]: FAILED!" not in output
    assert holder(str(fleet.folder / "two"), expired=True) is None


def test_teardown_asks_for_its_lock_before_it_takes_the_servers_out_of_the_gateways(fleet: Fleet) -> None:
    """Another run may have taken it over and deployed servers, which the gateways are to keep."""
    tasks = yaml.safe_load((ROOT / "roles/servers/tasks/teardown.yml").read_text())
    [block] = [task for task in tasks if task["name"] == "Take the servers out of the gateways"]
    (fleet.folder / "groups.yml").write_text(json.dumps({"all": {"children": {"gateways": {"hosts": {"gw1": {}}}}}}))
    play = {
        **{"hosts": "one", "gather_facts": False},
        "tasks": [
            {"magi.llama.run_lock": {"state_dir": "{{ servers_state_dir }}"}},
            {"ansible.builtin.copy": {"dest": "{{ servers_state_dir }}/run.lock", "content": LOST}},
            block,
        ],
    }
    (fleet.folder / "own.yml").write_text(json.dumps([play]))
    output = run(fleet, str(fleet.folder / "own"), code=2)
    assert "Another run has changed this host since" in output
    assert "Change the gateways]" not in output


def test_change_begins_without_what_an_earlier_one_left() -> None:
    """Facts outlive the change that sets them, such as that the handlers have nothing to launch."""
    tasks = ROOT / "roles/servers/tasks"

    def facts(name: str) -> set[str]:
        return set(re.findall(r"^ +(__servers_\w+):", "".join(blocks(name)), re.MULTILINE))

    def blocks(name: str) -> list[str]:
        return re.findall(r"ansible\.builtin\.set_fact:\n((?: +.*\n)+)", (tasks / f"{name}.yml").read_text())

    lasting = facts("waves") | facts("wave") | facts("return")
    # The first of a change set these.
    assert lasting - facts("begin") - {"__servers_all_waves"} == {
        "__servers_own_start_seconds",
        "__servers_own_waves",
        "__servers_turns",
        "__servers_wave",
    }
    for name, place in (("service", 0), ("state", 1)):
        assert yaml.safe_load((tasks / f"{name}.yml").read_text())[place]["ansible.builtin.import_tasks"] == "begin.yml"
