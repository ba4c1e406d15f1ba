# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbook_begin and check_variables: variables that no one reads, and those that a playbook needs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible import context
from ansible.errors import AnsibleError
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.utils import vars as ansible_vars
from ansible_collections.magi.llama.plugins.action.playbook_begin import _apply_errors
from ansible_collections.magi.llama.plugins.module_utils._output import rollout_summary
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import load_spec
from ansible_collections.magi.llama.plugins.plugin_utils.variable_names import OURS, known_names


class Begin:
    """A run of playbook_begin: extra variables as on the command line, and variables of hosts."""

    def __init__(self, run_action: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run_action, self._monkeypatch = run_action, monkeypatch

    def __call__(
        self,
        playbook: str,
        *extra: str,
        hosts: dict[str, dict[str, Any]] | None = None,
        called: tuple[str, ...] | None = None,
        play: list[str] | None = None,
    ) -> dict[str, Any]:
        arguments = {"args": called or (f"playbooks/{playbook}.yml",), "extra_vars": extra}
        self._monkeypatch.setattr(context, "CLIARGS", ImmutableDict(arguments))
        self._monkeypatch.setattr(ansible_vars.load_extra_vars, "extra_vars", None, raising=False)
        given = ansible_vars.load_extra_vars(DataLoader())
        hosts = {name: {**own, **given} for name, own in (hosts or {"h": {}}).items()}
        names = play or list(hosts)
        groups = {"all": list(hosts), "gpu": [name for name in hosts if name.startswith("g")]}
        groups["gateways"] = [name for name in hosts if name.startswith("w")]
        more = {"hostvars": hosts, "ansible_play_hosts_all": names, "groups": groups}
        run = self._run_action("playbook_begin", {"playbook": playbook}, **more)
        self.lines: list[str] = run.lines
        result: dict[str, Any] = run.result
        return result

    def error(self, *arguments: str, **more: Any) -> str:
        with pytest.raises(AnsibleError) as caught:
            self(*arguments, **more)
        return str(caught.value)


@pytest.fixture
def begin(run_action: Any, monkeypatch: pytest.MonkeyPatch) -> Begin:
    return Begin(run_action, monkeypatch)


@pytest.mark.parametrize(
    ("playbook", "extra"),
    [
        ("site", ("target=a", "profile=p output=json", "servers_stop_timeout=3", "my_own=1", "ansible_port=1")),
        ("stop", ("servers=all",)),
        ("start", ("servers=a,b", "runtime_upgrade=true")),
        ("verify", ('{"verify_timeout": 3}',)),
    ],
)
def test_known_and_unrelated_variables_pass(begin: Begin, playbook: str, extra: tuple[str, ...]) -> None:
    assert begin(playbook, *extra)["changed"] is False


@pytest.mark.parametrize(
    ("playbook", "extra", "says"),
    [
        ("site", "targt=a", "targt (given with -e) is not a variable of this collection; did you mean target?"),
        ("stop", "server=a", "server (given with -e) is not a variable of this collection; did you mean servers?"),
        ("site", "servers_prot_range_start=1", "servers_prot_range_start (given with -e) is not a variable of this"),
        ("site", "servers_prot_range_start=1", "did you mean servers_port_range_start"),
        ("site", "verify_zzz=1", "verify_zzz (given with -e) is not a variable of this collection"),
        ("site", "output_format=json", "output_format (given with -e) is not"),
        ("status", "fail_onn=drift", "did you mean fail_on?"),
        ("site", '{"rollout_seril": 1}', "did you mean rollout_serial"),
    ],
)
def test_misspelled_extra_variable_is_refused(begin: Begin, playbook: str, extra: str, says: str) -> None:
    assert says in begin.error(playbook, extra)


def takers(variable: str) -> str:
    """The playbooks that take a variable, as an error lists them."""
    books = load_spec()["playbooks"].items()
    return ", ".join(name for name, book in books if variable in book["variables"])


@pytest.mark.parametrize(
    ("playbook", "extra", "says"),
    [
        ("stop", "output=json", f"output is not a variable of stop; it is for {takers('output')}."),
        ("restart", "output_file=x", "output_file is not a variable of restart; it is for"),
        ("status", '{"profile": "p"}', f"profile is not a variable of status; it is for {takers('profile')}."),
        ("site", "servers=a", "servers is not a variable of site; it is for logs, start, stop, restart."),
    ],
)
def test_extra_variable_of_other_playbooks_is_refused(begin: Begin, playbook: str, extra: str, says: str) -> None:
    assert says in begin.error(playbook, extra, "servers=all" if playbook in ("stop", "restart") else "a=1")
    # Where several playbooks run, or another one imports this, it may be for those.
    for called in (("site.yml", "playbooks/status.yml", "magi.llama.restart"), ("own.yml",)):
        more = ("servers=all",) if playbook == "stop" else ()
        begin(playbook, extra, *more, hosts={"h": {"servers": "all"}}, called=called)


def test_all_errors_are_reported_at_once(begin: Begin) -> None:
    hosts = {"g1": {"servers_prots": 1, "verify_timeout": "soon"}, "g2": {"servers_prots": 1, "registry_pth": "/x"}}
    error = begin.error("verify", "targt=a", "output=yaml", "profile=p", hosts=hosts)
    assert error.splitlines() == [
        "targt (given with -e) is not a variable of this collection; did you mean target?",
        f"profile is not a variable of verify; it is for {takers('profile')}.",
        "servers_prots (set for g1 and 1 more) is not a variable of this collection"
        + error.splitlines()[2].partition("collection")[2],
        "registry_pth (set for g2) is not a variable of this collection; did you mean registry_path?",
        *error.splitlines()[4:],
    ]
    assert len(error.splitlines()) == 6
    assert 'output is "yaml"' in error and 'verify_timeout is "soon"' in error


def test_inventory_may_have_variables_of_other_playbooks_and_of_others(begin: Begin) -> None:
    """Facts of a host with such names fail that host alone, at its first task."""
    facts = {"servers_prots": 1}
    begin("status", hosts={"h": {"profile": "p", "output_dir": "/x", "server": "a", "ansible_facts": facts, **facts}})


@pytest.mark.parametrize("servers", [None, "", " , "])
@pytest.mark.parametrize("playbook", ["start", "stop", "restart"])
def test_servers_are_named(begin: Begin, playbook: str, servers: str | None) -> None:
    given = {} if servers is None else {"servers": servers}
    assert f"{playbook} needs the variable servers: Names of servers, separated by commas, or all" in begin.error(
        playbook, hosts={"h": given}
    )


@pytest.mark.parametrize(
    ("canary", "target", "says"),
    [
        ("g1", None, None),
        ("g2", "gpu", None),
        ("g3", None, 'rollout_canary is "g3", which is not a host of this run: valid are: c1, g1, g2'),
        ("nothing", None, "valid are: c1, g1, g2"),
        # The play has these two, as Ansible adds the canary to the hosts of the target.
        ("w1", None, 'rollout_canary is "w1", which is not a host of this run: valid are: c1, g1, g2'),
        ("c1", "gpu", 'rollout_canary is "c1", which is not a host of this run'),
    ],
)
def test_canary_is_a_host_of_the_run(begin: Begin, canary: str, target: str | None, says: str | None) -> None:
    hosts: dict[str, dict[str, Any]] = {"g1": {}, "g2": {}, "c1": {}, "w1": {}}
    extra = [f"rollout_canary={canary}", *([f"target={target}"] if target else [])]
    if says is None:
        begin("rollout", *extra, hosts=hosts)
    else:
        assert says in begin.error("rollout", *extra, hosts=hosts)


def test_role_refuses_misspelled_variables_of_the_inventory(run_action: Any) -> None:
    hosts = {"h": {"registry_pth": "/x", "servers_cpu_weigth": 1}}
    with pytest.raises(AnsibleError) as caught:
        run_action("check_variables", {"entry_points": {"registry": "main"}}, hostvars=hosts, registry_force="perhaps")
    said = str(caught.value)
    assert "registry_pth (set for h)" in said and "servers_cpu_weigth (set for h)" in said and "registry_force" in said


def test_variables_of_tests_and_examples_are_known() -> None:
    assert {"servers", "target", "registry_path", "rollback_keep_binary"} <= known_names()
    assert OURS.fullmatch("servers_x") and not OURS.fullmatch("servers")


@pytest.mark.parametrize("playbook", ["rollout", "rollback", "verify"])
def test_httpx_is_required_before_any_change_where_the_controller_asks(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, playbook: str
) -> None:
    monkeypatch.setattr("ansible_collections.magi.llama.plugins.action.playbook_begin.find_spec", lambda _name: None)
    assert "pip install httpx, or set verify_from=host" in begin.error(playbook, "verify_from=controller")
    for who in ("auto", "host"):
        assert not begin(playbook, f"verify_from={who}")["changed"]


def test_rollout_serial_that_is_not_a_size_is_an_error(begin: Begin) -> None:
    assert 'rollout_serial is "abc": it is a list such as [1, "25%"]' in begin.error("rollout", "rollout_serial=abc")


@pytest.mark.parametrize(("args", "silent"), [("-o ControlMaster=auto", ["h", "i"]), ("-o ServerAliveInterval=10", [])])
def test_hosts_that_may_fall_silent_are_named_with_the_setting(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, args: str, silent: list[str]
) -> None:
    monkeypatch.setenv("ANSIBLE_SSH_ARGS", args)
    begin("status", hosts={"h": {}, "i": {}, "l": {"ansible_connection": "local"}})
    shown = [line for line in begin.lines if "ServerAliveInterval" in line]
    says = f"warning  ssh has no ServerAliveInterval for {', '.join(silent)}: "
    assert [says in line for line in shown] == [True] * bool(silent)
    assert all(
        "ssh_args = -o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=10" in line for line in shown
    )


def test_plan_that_cannot_be_applied_is_refused_at_once(begin: Begin) -> None:
    assert begin("site", "apply=0123456789abcdef")["changed"] is False
    assert begin("rollout", '{"apply": 1234567890123456}')["changed"] is False
    for given in ("apply=0123", "apply=missing.json", "apply="):
        assert "which is neither a hash (16 to 64 hexadecimal digits) nor a file" in begin.error("site", given)
    assert "apply is not a variable of plan; it is for site, rollout." in begin.error("plan", "apply=0123456789abcdef")


def test_part_of_a_plan_is_not_applied() -> None:
    hosts = {"h": {"apply": "0123456789abcdef"}}
    assert _apply_errors(hosts, {"ansible_run_tags": ["all"], "ansible_skip_tags": []}) == []
    for tags in ({"ansible_run_tags": ["runtime"]}, {"ansible_run_tags": ["all"], "ansible_skip_tags": ["registry"]}):
        assert _apply_errors(hosts, tags) == ["apply does all that the plan has: leave out --tags and --skip-tags."]
        assert _apply_errors({"h": {}}, tags) == []


def test_export_needs_one_of_its_formats(begin: Begin) -> None:
    assert begin.error("export", "a=1").startswith("export needs the variable format: What the files are for: compose")
    says = 'format is "kubernets": it is one of compose, quadlet, kubernetes, '
    error = begin.error("export", "format=kubernets", "export_dri=x")
    assert says in error and 'did you mean "kubernetes"?' in error and "did you mean export_dir?" in error


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"),
        ("- {prompt: a, expect: {contain: b}}\n", 'prompts[0].expect: there is no key "contain"'),
        ("- [", "rollout_prompts ("),
    ],
)
def test_golden_prompts_that_cannot_be_used_are_an_error_before_any_host(
    begin: Begin, tmp_path: Any, content: str | None, says: str
) -> None:
    path = tmp_path / "p.yml"
    if content is not None:
        path.write_text(content)
    assert says in begin.error("rollout", f"rollout_prompts={path}")


def test_slowdown_in_per_cent_is_an_error(begin: Begin) -> None:
    says = 'rollout_max_slowdown is "20": it is a number, 1 or less.'
    assert says in begin.error("rollout", "rollout_max_slowdown=20")


def rollout_file(tmp_path: Any, **states: str) -> str:
    hosts = {name: {**rollout_summary.begin(), "state": state} for name, state in states.items()}
    path = tmp_path / "rollout.json"
    path.write_text(json.dumps(rollout_summary.summary(hosts, 1.0)))
    return str(path)


def test_rollback_of_a_rollout_takes_the_hosts_that_it_changed(begin: Begin, tmp_path: Any) -> None:
    path = rollout_file(tmp_path, g1="updated", g2="untouched", c1="updated")
    # c1 is left out with --limit.
    result = begin("rollback", f"rollout={path}", hosts={"g1": {}, "g2": {}, "c1": {}}, play=["g1", "g2"])
    assert result["rollout_hosts"] == ["g1"]


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"g1": "untouched"}, "it changed no host"),
        ({"c1": "updated"}, "none of those that it changed (c1) is in this run"),
    ],
)
def test_rollback_of_a_rollout_without_a_host_is_an_error(
    begin: Begin, tmp_path: Any, states: dict[str, str], says: str
) -> None:
    path = rollout_file(tmp_path, **states)
    assert says in begin.error("rollback", f"rollout={path}", hosts={"g1": {}})


def test_rollback_of_what_is_no_rollout_is_an_error(begin: Begin, tmp_path: Any) -> None:
    assert 'rollout is "4711": there is no such file' in begin.error("rollback", "rollout=4711")
    (tmp_path / "plan.json").write_text(
        '{"schema_version": 1, "collection_version": "0.1.0", "kind": "plan", "hosts": {}}'
    )
    says = "cannot be read as the document of rollout.yml"
    assert says in begin.error("rollback", f"rollout={tmp_path / 'plan.json'}")
