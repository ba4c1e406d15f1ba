# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gguf_registry, server_plan, launch_configs, profile and rollback: the controller's part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run

# --- gguf_registry ----------------------------------------------------------------------------------------------------


REGISTRY = {"models": [], "companions": [], "rejected": [], "scan_paths": ["/m"], "total": 0}
NO_SERVERS = {"profile": "p", "start": None, "servers": [], "memory": {}, "warnings": []}
PLAN = {"schema_version": 1, "collection_version": "1.0.0", **NO_SERVERS}
PLANNED = {"drift": {}, "deployed": {}, "ansible_facts": {"llama_plan": PLAN}}
WRITTEN = {"changed": True, "written": [], "removed": []}


def scanned(done: int, **more: Any) -> dict[str, Any]:
    progress = {"done": done, "total": 9, **more.pop("progress", {})}
    facts = {"ansible_facts": {"llama_registry": REGISTRY}} if done == 9 else {}
    return {"complete": done == 9, "progress": progress, "resume": "r1", **facts, **more}


def test_scan_continues_in_slices_and_shows_its_progress(run_action):
    sums = {
        "checksums_total": 2,
        "checksums_done": 1,
        "checksums_bytes": 1500000000,
        "checksums_total_bytes": 4000000000,
    }
    answers = [scanned(3), scanned(8, progress=sums), scanned(9)]
    run = run_action("gguf_registry", {"scan_paths": ["/m"]}, answers=answers)
    assert run.lines == ["h: 3 of 9 files read", "h: checksums of 1 of 2 files (1.5 of 4.0 GB)"]
    assert [(sent.get("resume"), sent["time_limit"]) for _name, sent in run.calls] == [
        (None, 4.0),
        ("r1", 10.0),
        ("r1", 10.0),
    ]


def test_scan_that_never_gets_further_fails(run_action):
    """Otherwise a host that never completes a scan holds the run for ever."""
    with pytest.raises(AnsibleError, match="gets no further: 3 of 9 files read"):
        run_action("gguf_registry", {"scan_paths": ["/m"]}, answers=[scanned(3)] * 7)


def test_scan_with_ever_more_files_fails(run_action):
    answers = [scanned(3), scanned(10**9, progress={"total": 10**9 + 1})]
    with pytest.raises(AnsibleError, match="gets no further"):
        run_action("gguf_registry", {"scan_paths": ["/m"]}, answers=answers)


@pytest.mark.parametrize("more", [{"check": True}, {"arguments": {"time_limit": 3}}])
def test_scan_in_one_call(run_action, more):
    arguments = {"scan_paths": ["/m"], **more.pop("arguments", {})}
    assert len(run_action("gguf_registry", arguments, answers=[scanned(3)], **more).calls) == 1


def test_scan_failure_ends_the_slices(run_action):
    run = run_action("gguf_registry", {}, answers=[{"failed": True, "msg": "no folder", "complete": False}])
    assert run.result["failed"]


def test_scan_manifest_next_to_the_inventory_is_sent(run_action, tmp_path: Path):
    (tmp_path / "models.lock.yml").write_text("schema_version: 1\nfiles: {}\n")
    arguments = {"manifest_file": "models.lock.yml", "state_dir": "/s"}
    run = run_action("gguf_registry", arguments, answers=[scanned(9)], inventory_dir=str(tmp_path))
    [(_name, sent)] = run.calls
    assert sent["manifest"] == {"schema_version": 1, "files": {}} and "manifest_file" not in sent
    assert sent[FILLED_IN]["run_id"] == this_run("h")["id"]


def test_scan_manifest_that_is_not_a_mapping_is_refused(run_action, tmp_path: Path):
    (tmp_path / "m.yml").write_text("- a\n")
    with pytest.raises(AnsibleError, match=r"m.yml is not a manifest"):
        run_action("gguf_registry", {"manifest_file": "m.yml"}, inventory_dir=str(tmp_path))


def test_scan_manifest_with_a_syntax_error_names_file_and_line(run_action, tmp_path: Path):
    (tmp_path / "m.yml").write_text("files:\n  a: {\n")
    with pytest.raises(AnsibleError) as refused:
        run_action("gguf_registry", {"manifest_file": "m.yml"}, inventory_dir=str(tmp_path))
    assert refused.value.message.startswith(f"manifest ({tmp_path}/m.yml, line 3): YAML parsing failed")


# --- server_plan ------------------------------------------------------------------------------------------------------


def registry(*ids: str, **more: Any) -> dict[str, Any]:
    return {"llama_registry": {"models": [{"id": name, **more} for name in ids]}}


def plan_arguments(*models: str) -> dict[str, Any]:
    return {"profile": {"enabled_models": [{"model": name} for name in models]}}


def test_plan_models_that_only_other_hosts_have_are_passed(run_action):
    hosts = {"h": {"ansible_facts": registry("a")}, "i": {"ansible_facts": registry("b", "z")}, "j": {}}
    run = run_action(
        "server_plan", plan_arguments("a", "b", "c"), answers=[PLANNED], facts=registry("a"), hostvars=hosts,
        ansible_play_hosts_all=["h", "i", "j"],
    )  # fmt: skip
    assert run.calls[0][1][FILLED_IN] == {"known_elsewhere": ["b"]}


@pytest.mark.parametrize("place", ["models.lock.yml", "registry_manifest_file"])
def test_plan_models_of_the_manifest_are_passed(run_action: Any, tmp_path: Path, place: str) -> None:
    """A host that is not in this run may have them."""
    (tmp_path / place).write_text(yaml.safe_dump({"schema_version": 1, "files": {"big/B-00001-of-00002.gguf": {}}}))
    variables: dict[str, Any] = {"inventory_dir": str(tmp_path)}
    if place != "models.lock.yml":
        variables[place] = str(tmp_path / place)
    hosts = {"h": {"ansible_facts": registry("a")}}
    run = run_action(
        "server_plan", plan_arguments("a", "b", "c"), answers=[PLANNED], facts=registry("a"), hostvars=hosts,
        ansible_play_hosts_all=["h"], **variables,
    )  # fmt: skip
    assert run.calls[0][1][FILLED_IN] == {"known_elsewhere": [], "known_from_manifest": ["b"]}


def test_plan_without_missing_models_passes_nothing(run_action):
    run = run_action("server_plan", plan_arguments("a"), answers=[PLANNED], facts=registry("a"))
    assert FILLED_IN not in run.calls[0][1] and "registry" not in run.calls[0][1]


@pytest.mark.parametrize(("more", "sent"), [({"memory": {}}, True), ({}, False)])
def test_plan_check_mode_passes_the_registry_unless_it_is_short(run_action, more, sent):
    run = run_action("server_plan", plan_arguments(), answers=[PLANNED], facts=registry("a", **more), check=True)
    assert ("registry" in run.calls[0][1]) is sent


# --- launch_configs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "one.j2").write_text("{{ ansible_managed }}\n{{ server.name }} {{ greeting }} {{ state_dir }}\n\n")
    (folder / "all.j2").write_text("shared\n")
    return folder


def launch(templates: Path, *servers: dict[str, Any]) -> dict[str, Any]:
    plan = {"profile": "p", "start": {}, "servers": list(servers)}
    arguments = {"service_manager": "supervisor", "state_dir": "/s//", "plan": plan}
    return {**arguments, "template": str(templates / "one.j2"), "common_template": str(templates / "all.j2")}


def server(name: str, action: str = "start") -> dict[str, Any]:
    return {"name": name, "action": action, "reason": ""}


def test_configs_are_rendered_for_all_but_stopped_servers(run_action, templates):
    arguments = launch(templates, server("a"), server("{{ 1 + 1 }}", "keep"), server("c", "stop"))
    run = run_action("launch_configs", arguments, answers=[WRITTEN], greeting="hi")
    [(_name, sent)] = run.calls
    filled = sent[FILLED_IN]
    texts = {Path(config["path"]).name: config["content"] for config in filled["configs"]}
    assert sorted(texts) == ["a.conf", "supervisord.conf", "{{ 1 + 1 }}.conf"]
    assert texts["a.conf"].splitlines()[1:] == ["a hi /s"] and texts["supervisord.conf"] == "shared\n"
    # A name from a model file is text, never a template.
    assert texts["{{ 1 + 1 }}.conf"].splitlines()[1] == "{{ 1 + 1 }} hi /s"
    assert filled["run_id"] == this_run("h")["id"]


def gateways(**variables: dict[str, Any]) -> dict[str, Any]:
    return {"groups": {"gateways": list(variables)}, "hostvars": variables}


@pytest.mark.parametrize(
    ("found", "allowed", "warns"),
    [
        ({}, "[]", False),
        (
            gateways(g={"ansible_host": "192.0.2.10"}, k={"ansible_host": "2001:db8::1"}),
            "['192.0.2.10', '2001:db8::1']",
            False,
        ),
        # The servers' own host, and with it another one.
        (gateways(h={}), "['127.0.0.0/8']", False),
        (gateways(h={}, g={"ansible_host": "192.0.2.10"}), "['127.0.0.0/8', '192.0.2.10']", False),
        # No gateway is shut out by a guess.
        (gateways(g={"ansible_host": "192.0.2.10"}, c={"ansible_connection": "local"}), "[]", True),
    ],
)
def test_gateways_of_inventory_reach_servers(run_action, templates, found, allowed, warns):
    (templates / "one.j2").write_text("{{ allow_addresses }}\n")
    arguments = {**launch(templates, {**server("a"), "host": "0.0.0.0"}), "allow_addresses": ["gateways"]}
    run = run_action("launch_configs", arguments, answers=[WRITTEN], **found)
    texts = {Path(config["path"]).name: config["content"] for config in run.calls[0][1][FILLED_IN]["configs"]}
    assert texts["a.conf"].strip() == allowed
    assert ["not known" in text for text in run.result.get("warnings", [])] == [True] * warns


def test_configs_that_are_on_the_host_are_not_sent(run_action, templates):
    sent = run_action("launch_configs", launch(templates, server("a")), answers=[WRITTEN], greeting="hi").calls[0][1]
    from ansible_collections.magi.llama.plugins.action import launch_configs as action

    files = [action.File(config["path"], config["content"].encode()) for config in sent[FILLED_IN]["configs"]]
    deployed = action.planned("/s", action.record_of(sent["plan"], "supervisor"), files)
    run = run_action("launch_configs", {**launch(templates, server("a")), "deployed": deployed}, greeting="hi")
    assert run.result["changed"] is False and run.calls == []


# --- profile ----------------------------------------------------------------------------------------------------------


def test_profile_of_the_first_folder_wins_and_may_use_variables(run_action, tmp_path: Path):
    for folder, size in (("one", "{{ size }}"), ("two", "2")):
        (tmp_path / folder).mkdir()
        text = f"enabled_models: [a]\nparameters: {{ctx_size: '{size}'}}\n"
        (tmp_path / folder / "p.yml").write_text(text)
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    run = run_action("profile", {"name": "p", "search_paths": folders[1:]})
    assert run.result["ansible_facts"]["llama_profile"]["parameters"] == {"ctx_size": "2"}
    assert run.result["changed"] is False


@pytest.mark.parametrize("name", ["prodction", "../x"])
def test_profile_that_does_not_exist_is_refused_with_the_existing_ones(run_action, tmp_path: Path, name):
    (tmp_path / "production.yml").write_text("enabled_models: [a]\n")
    with pytest.raises(AnsibleError, match=r"There is no profile .*there are: production"):
        run_action("profile", {"name": name, "search_paths": [str(tmp_path)]})


def test_profile_with_an_error_names_the_key(run_action, tmp_path: Path):
    (tmp_path / "p.yml").write_text("enabled_model: [a]\n")
    with pytest.raises(AnsibleError, match='unknown key "enabled_model": did you mean "enabled_models"'):
        run_action("profile", {"name": "p", "search_paths": [str(tmp_path)]})


def test_profile_with_a_syntax_error_names_file_and_line(run_action, tmp_path: Path):
    (tmp_path / "p.yml").write_text("enabled_models:\n  - [a\n")
    with pytest.raises(AnsibleError) as refused:
        run_action("profile", {"name": "p", "search_paths": [str(tmp_path)]})
    assert refused.value.message.startswith(f'profile "p" ({tmp_path}/p.yml, line 3): YAML parsing failed')


# Ten levels of ten: ten billion values once they are copied, as a template or for another process.
BOMB = "\n".join(
    ["l0: &l0 [1]", *(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 11))]
)
# A merge copies while the file is loaded.
MERGED = "\n".join(
    ["l0: &l0 {x: 1}", *(f"l{n}: &l{n}\n  <<: [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 11))]
)


@pytest.mark.parametrize("text", [BOMB, MERGED, "a: &a [*a]"])
def test_aliases_that_grow_are_refused_before_anything_is_copied(run_action: Any, tmp_path: Path, text: str) -> None:
    for name in ("p.yml", "m.yml"):
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(AnsibleError, match=rf'profile "p" \({tmp_path}/p.yml\): its aliases .* more than 10000 values'):
        run_action("profile", {"name": "p", "search_paths": [str(tmp_path)]})
    with pytest.raises(AnsibleError, match=rf"manifest \({tmp_path}/m.yml\): its aliases"):
        run_action("gguf_registry", {"manifest_file": "m.yml"}, inventory_dir=str(tmp_path))


def test_aliases_of_usual_size_and_long_files_without_them_are_read(run_action: Any, tmp_path: Path) -> None:
    entries = [f"{{model: m{number}, parameters: *more}}" for number in range(2001)]
    text = f"parameters: &more {{ctx_size: 512}}\nenabled_models: [{', '.join(entries)}]\n"
    (tmp_path / "p.yml").write_text(text, encoding="utf-8")
    profile = run_action("profile", {"name": "p", "search_paths": [str(tmp_path)]}).result["ansible_facts"][
        "llama_profile"
    ]
    assert profile["enabled_models"][2000]["parameters"] == {"ctx_size": 512}


MISREAD = """\
description: "010 and 1:30 in quotes"
enabled_models:
  - {model: a, port: 1:30, instances: 010}
  - {model: '012', port: 8080, parameters: &more {ctx_size: 010000, tensor_split: [3:1, 07, "3:1", 0x10]}}
  - {model: b, parameters: *more}
parameters: {seed: -0_17, temp: 1:30.5, ctx_size: 0}
"""


def test_numbers_that_yaml_does_not_read_in_decimal_are_warned_of(run_action: Any, tmp_path: Path) -> None:
    source = tmp_path / "p.yml"
    source.write_text(MISREAD, encoding="utf-8")
    run = run_action("profile", {"name": "p", "search_paths": [str(tmp_path)]})
    advice = "Quote it or write it in decimal."
    assert run.lines == [
        f"      warning  {source}, line {line}: {key} is {text}, which YAML reads as {base}: {value}. {advice}"
        for line, key, text, base, value in (
            (3, "enabled_models[0].port", "1:30", "a number to base 60", 90),
            (3, "enabled_models[0].instances", "010", "an octal number", 8),
            (4, "enabled_models[1].parameters.ctx_size", "010000", "an octal number", 4096),
            (4, "enabled_models[1].parameters.tensor_split[0]", "3:1", "a number to base 60", 181),
            (6, "parameters.seed", "-0_17", "an octal number", -15),
            (6, "parameters.temp", "1:30.5", "a number to base 60", 90.5),
        )
    ]


# --- rollback ---------------------------------------------------------------------------------------------------------


START = {"concurrent": True, "max_startup_time": 120, "readiness_check_interval": 2}
PROFILE = {"name": "p", "description": "the deployment before", "source": "", "start": START}
BACK = {**WRITTEN, "restored": [], "ansible_facts": {"llama_plan": PLAN, "llama_profile": PROFILE}}


def test_rollback_is_sent_with_the_run(run_action):
    run = run_action("rollback", {"state_dir": "/s"}, answers=[BACK])
    assert run.calls[0][1] == {"state_dir": "/s", FILLED_IN: {"run_id": this_run("h")["id"]}} and run.result["changed"]


@pytest.mark.parametrize("step", ["runtime", "discovery", "registry", "profile", "enabled", "launch"])
def test_report_of_what_no_task_has_found_says_what_to_run(run_action, step):
    with pytest.raises(AnsibleError, match=r"llama_\w+ is missing. .*Run the playbook from its beginning"):
        run_action("report", {"step": step})


def test_plan_check_without_a_scan_uses_the_file_on_the_host(run_action):
    run = run_action("server_plan", {"profile": {"enabled_models": []}}, answers=[PLANNED], check=True)
    assert "registry" not in run.calls[0][1]
