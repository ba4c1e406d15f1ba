# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Distributing models, on the controller: which files each host wants, who lists them, and what a host is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN
from ansible_collections.magi.llama.plugins.module_utils._distribution.job import JobError, parse_job
from ansible_collections.magi.llama.plugins.module_utils._distribution.pieces import compute_pieces
from ansible_collections.magi.llama.plugins.plugin_utils import distribution
from ansible_collections.magi.llama.plugins.plugin_utils.distribution import Silence, listed_of, run_of

NAME = "model-Q4_K_M.gguf"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "models/.hidden").mkdir(parents=True)
    (tmp_path / "models" / NAME).write_bytes(b"content" * 1000)
    (tmp_path / "models/notes.txt").write_text("no model")
    (tmp_path / "models/.hidden/other.gguf").write_bytes(b"hidden")
    return tmp_path / "models"


@pytest.fixture
def manifest(source: Path, tmp_path: Path) -> Path:
    pieces = compute_pieces(str(source / NAME))
    entry = {"sha256": pieces.sha256, "size": pieces.size, "source": None}
    path = tmp_path / "models.lock.yml"
    path.write_text(json.dumps({"schema_version": 1, "files": {NAME: entry, "/absolute/b.gguf": entry}}))
    return path


def inspected(run_action: Any, state: str = "missing", **options: Any) -> Any:
    answer = {"files": [{"name": NAME, "size": 1, "sha256": None, "wanted": True, "state": state}]}
    return run_action(
        "model_fetch", {"state": "inspected", "dest": "/models", "address": "10.0.0.1", **options}, answers=[answer]
    )


def test_host_is_asked_for_the_files_of_folder_and_manifest(run_action: Any, source: Path, manifest: Path) -> None:
    run = inspected(run_action, models="model-q4_k_m", source=str(source), manifest_file=str(manifest))
    [(module, arguments)] = run.calls
    [file] = arguments[FILLED_IN]["files"]
    assert (module, file["name"], file["size"], file["wanted"]) == ("model_fetch", NAME, 7000, True)
    assert run.lines == ["      models   0 of 1 files are there; to copy: 1, 6.8 KiB"]
    # What the host says of size and checksum is not used.
    assert run.result["files"] == [{**file, "state": "missing"}]


def test_files_of_the_profile_are_the_default(run_action: Any, manifest: Path) -> None:
    entries = [
        {"model": None, "selector": {"tier": "Q4"}, "key": "enabled_models[0]"},
        {"model": "gone", "selector": {}, "key": "enabled_models[1]"},
    ]
    run = inspected(run_action, "present", profile={"enabled_models": entries}, manifest_file=str(manifest))
    assert run.lines == [
        "      models   1 of 1 files are there",
        "      warning  the manifest has no file for enabled_models[1] (gone)",
    ]
    assert not run.result["changed"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"models": ["modl-q4_k_m"]}, 'no file "modl-q4_k_m": did you mean "model-q4_k_m"'),
        ({"models": [NAME], "rate_up": "10"}, "models_rate_up is '10': set it to a size such as 20MB"),
        ({}, "models_files is empty and there is no profile"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    run_action: Any, manifest: Path, options: dict[str, Any], error: str
) -> None:
    arguments = {"state": "inspected", "dest": "/models", "manifest_file": str(manifest), **options}
    with pytest.raises(AnsibleActionFail, match=error):
        run_action("model_fetch", arguments)


def test_without_manifest_and_folder_no_file_is_known(run_action: Any) -> None:
    with pytest.raises(AnsibleActionFail, match=r"write the manifest with manifest\.yml, or set models_source"):
        run_action("model_fetch", {"state": "inspected", "dest": "/models", "models": ["a"]})


def test_with_a_public_key_only_a_signed_manifest_counts(run_action: Any, source: Path, manifest: Path) -> None:
    arguments = {"state": "inspected", "dest": "/models", "models": [NAME], "source": str(source)}
    key = {"manifest_public_key": "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"}
    with pytest.raises(AnsibleActionFail, match=r"there is no manifest: write and sign it with manifest\.yml"):
        run_action("model_fetch", {**arguments, **key})
    with pytest.raises(AnsibleActionFail, match=r"models\.lock\.yml\.minisig does not exist"):
        run_action(
            "model_fetch", {**arguments, **key, "manifest_file": manifest.name}, inventory_dir=str(manifest.parent)
        )


def found(states: dict[str, str], sha256: str | None = None, size: int = 7000) -> dict[str, Any]:
    hostvars = {}
    for host, state in states.items():
        file = {"name": NAME, "size": size, "sha256": sha256, "wanted": True, "state": state}
        hostvars[host] = {"__models_found": {"files": [file], "address": host}}
    hosts = list(states)
    play = {"ansible_play_hosts": hosts, "ansible_play_hosts_all": hosts}
    return {"hostvars": hostvars, **play, "inventory_hostname": hosts[0]}


def listed(run_action: Any, task_vars: dict[str, Any], answers: list[Any], **options: Any) -> Any:
    return run_action("model_fetch", {"state": "listed", "dest": "/models", **options}, answers=answers, **task_vars)


def test_controller_lists_its_own_file_without_asking(run_action: Any, source: Path) -> None:
    run = listed(run_action, found({"a": "missing", "b": "present"}), [], source=str(source))
    assert run.result["listed"][NAME]["from"] == "controller"
    assert len(run.result["token"]) == 64
    assert (source / f"{NAME}.pieces").exists()


def test_host_with_the_file_lists_it_and_has_to_have_that_of_the_manifest(run_action: Any, source: Path) -> None:
    pieces = compute_pieces(str(source / NAME))
    answer = {"listed": {NAME: {"pieces": pieces.as_dict(), "from": "host", "mirror": ""}}}
    run = listed(run_action, found({"a": "present", "b": "missing"}, pieces.sha256), [answer])
    assert run.result["listed"][NAME]["from"] == "host"
    with pytest.raises(AnsibleActionFail, match="a has another model-Q4_K_M\\.gguf than the manifest"):
        listed(run_action, found({"a": "present", "b": "missing"}, "0" * 64), [answer])


def test_list_of_a_failed_host_is_not_used(run_action: Any, source: Path) -> None:
    pieces = compute_pieces(str(source / NAME))
    evil = {"listed": {NAME: {"pieces": pieces.as_dict(), "from": "host", "mirror": ""}}, "failed": True, "msg": "disk"}
    task_vars = found({"a": "present", "b": "missing"}, "0" * 64)
    run = listed(run_action, task_vars, [evil])
    assert (run.result["failed"], "listed" in run.result) == (True, False)
    # Ansible registers what a host has answered, in whichever way it has failed.
    for end in ("failed", "unreachable", "skipped"):
        task_vars["hostvars"]["a"]["__models_listed"] = {**evil, "failed": False, end: True}
        assert listed_of(task_vars)[0] == {}


def test_files_of_a_failed_host_are_not_used(run_action: Any, manifest: Path) -> None:
    task_vars = found({"a": "missing", "b": "present"})
    evil = {"name": NAME, "size": 1, "sha256": "0" * 64, "wanted": True, "state": "present"}
    answer = {"failed": True, "msg": "disk", "files": [evil]}
    arguments = {"state": "inspected", "dest": "/models", "models": [NAME], "manifest_file": str(manifest)}
    assert "files" not in run_action("model_fetch", arguments, answers=[answer]).result
    task_vars["hostvars"]["c"] = {"__models_found": answer}
    task_vars["ansible_play_hosts_all"] = ["c", "a", "b"]
    [transfer], addresses = run_of(task_vars)
    assert (transfer.has, transfer.sha256, addresses) == (("b",), None, {"a": "a", "b": "b"})


@pytest.mark.parametrize("lister", ["host", "mirror", "controller"])
def test_whole_file_is_compared_with_the_manifest_not_with_the_list(run_action: Any, source: Path, lister: str) -> None:
    task_vars = started(source, {"b": "missing", "a": "present"})
    entry = task_vars["hostvars"]["b"]["__models_listed"]["listed"][NAME]
    manifest = entry["pieces"]["sha256"]
    entry.update(pieces={**entry["pieces"], "sha256": "0" * 64}, **{"from": lister})
    run = run_action("model_fetch", {"state": "started", "dest": "/models"}, answers=[{}], **task_vars)
    [(_module, arguments)] = run.calls
    assert json.loads(arguments[FILLED_IN]["job"])["files"][0]["sha256"] == manifest


def test_token_is_that_of_the_first_host_whose_list_succeeded(run_action: Any, source: Path) -> None:
    task_vars = started(source, {"a": "present", "b": "missing", "c": "present"})
    entry = task_vars["hostvars"]["a"].pop("__models_listed")["listed"]
    task_vars["hostvars"]["a"]["__models_listed"] = {"failed": True, "msg": "a disk", "token": "of a failed host"}
    task_vars.update(inventory_hostname="b", ansible_play_hosts=["b", "c"])
    task_vars["hostvars"]["b"]["__models_listed"] = listed(run_action, task_vars, [], source=str(source)).result
    task_vars["hostvars"]["c"]["__models_listed"] = {"listed": entry, "token": "c"}
    token = task_vars["hostvars"]["b"]["__models_listed"]["token"]
    run = run_action("model_fetch", {"state": "started", "dest": "/models"}, answers=[{}], **task_vars)
    [(_module, arguments)] = run.calls
    job = arguments[FILLED_IN]["job"]
    assert (len(token), json.loads(job)["token"]) == (64, token)
    with pytest.raises(JobError, match="has no token"):
        parse_job({**json.loads(job), "addresses": [], "token": ""})
    del task_vars["hostvars"]["b"]["__models_listed"]["token"], task_vars["hostvars"]["c"]["__models_listed"]["token"]
    with pytest.raises(AnsibleActionFail, match="No host of the run has made its token"):
        run_action("model_fetch", {"state": "started", "dest": "/models"}, **task_vars)


@pytest.mark.parametrize(
    ("states", "sha256", "error"),
    [
        ({"a": "missing", "b": "missing"}, "0" * 64, "No host of this run has"),
        ({"a": "missing", "b": "present"}, None, "only handed on where the manifest has its SHA-256"),
        ({"a": "differs", "b": "present"}, "0" * 64, "Another file has this name: a: model"),
    ],
)
def test_file_without_a_source_is_refused(
    run_action: Any, states: dict[str, str], sha256: str | None, error: str
) -> None:
    with pytest.raises(AnsibleActionFail, match=error):
        listed(run_action, found(states, sha256), [])


def status(**more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("wanted", "have", "resumed", "source", "hosts", "controller", "sent", "port"), 0)
    return {
        **{"complete": False, "error": "", **counts, "hosts_reached": 1, "dropped": {}, "unreached": {}},
        **{"idle_seconds": 0.0, "quiet_seconds": 0.0, "beat": 1, "pieces": {}, **more},
    }


def started(source: Path, states: dict[str, str]) -> dict[str, Any]:
    pieces = compute_pieces(str(source / NAME))
    task_vars = found(states, pieces.sha256)
    first = task_vars["inventory_hostname"]
    entry = {"pieces": pieces.as_dict(), "from": "host", "mirror": ""}
    task_vars["hostvars"][first]["__models_listed"] = {"listed": {NAME: entry}, "token": "t"}
    return {**task_vars, "__models_started": {"started": True}}


def fetched(run_action: Any, task_vars: dict[str, Any], *statuses: dict[str, Any]) -> Any:
    answers = [{"status": one} for one in statuses]
    return run_action("model_fetch", {"state": "fetched", "dest": "/models"}, answers=answers, **task_vars)


def test_host_that_sent_garbage_and_one_not_reached_are_named(run_action: Any, source: Path) -> None:
    ended = status(complete=True, source=7000, dropped={"c": "piece 0 is wrong"}, unreached={"d": "timed out"})
    run = fetched(run_action, started(source, {"a": "missing", "b": "present"}), status(), ended)
    assert run.lines[1:] == [
        "a |       warning  c was dropped: piece 0 is wrong",
        "a |       warning  not reached: d (timed out). Open models_port_range_start to models_port_range_end between the "
        "hosts for the time of the run.",
    ]
    assert run.result["changed"]
    assert "6.8 KiB from the source" in run.result["msg"]


def test_stall_and_error_of_the_host_fail_it(run_action: Any, source: Path) -> None:
    task_vars = started(source, {"a": "missing", "b": "present"})
    with pytest.raises(AnsibleActionFail, match=r"No piece has come for 300 s .*Not reached: b \(refused\)"):
        fetched(run_action, task_vars, status(quiet_seconds=301.0, unreached={"b": "refused"}))
    with pytest.raises(AnsibleActionFail, match="No space left on device"):
        fetched(run_action, task_vars, status(error="[Errno 28] No space left on device."))


def test_error_of_a_host_changes_nothing_on_the_terminal(run_action: Any, source: Path) -> None:
    task_vars = started(source, {"a": "missing", "b": "present"})
    escape = "\x1b]0;title\x07"
    with pytest.raises(AnsibleActionFail) as failed:
        fetched(run_action, task_vars, status(error=escape, dropped={escape: escape}, unreached={escape: escape}))
    assert "\x1b" not in str(failed.value)
    assert str(failed.value).count(r"\x1b]0;title") == 5


def test_complete_file_that_is_read_for_its_checksum_is_no_stall(run_action: Any, source: Path) -> None:
    task_vars = started(source, {"a": "missing", "b": "present"})
    reading = status(idle_seconds=4000.0, quiet_seconds=0.1, hosts_reached=0)
    assert fetched(run_action, task_vars, reading, status(complete=True, source=7000)).result["changed"]


def test_status_that_stands_still_fails_the_host(
    run_action: Any, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    silence = Silence(300, lambda: now[0])
    for now[0], beat, is_error in [(0.0, 1, False), (299.0, 1, False), (310.0, 2, False), (620.0, 2, True)]:
        assert bool(silence.error(status(beat=beat))) == is_error
    monkeypatch.setattr(distribution, "LEAST_SILENCE", -1.0)
    # The process reads what an earlier run has copied, from a disk that hangs.
    begun = {"complete": False, "error": "", "beat": 1}
    with pytest.raises(AnsibleActionFail, match=r"nothing new for 0 s: its disk is full or hangs\. .*run again"):
        run_action(
            "model_fetch",
            {"state": "fetched", "dest": "/models", "stall_seconds": -1},
            answers=[{"status": begun}],
            **started(source, {"a": "missing", "b": "present"}),
        )


def test_host_that_has_failed_since_changes_nothing_for_the_others(run_action: Any, source: Path) -> None:
    task_vars = started(source, {"a": "present", "b": "missing"})
    # It was the one to list the pieces, and to make the token.
    task_vars.update(ansible_play_hosts=["b"], inventory_hostname="b")
    run = fetched(run_action, task_vars, status(complete=True, source=7000))
    assert run.result["changed"]


def test_file_that_was_not_listed_is_an_error(run_action: Any, source: Path) -> None:
    task_vars = {**found({"a": "missing", "b": "present"}, "0" * 64), "ansible_play_hosts": ["a"]}
    with pytest.raises(AnsibleActionFail, match="were not listed, as the host that has them has failed"):
        run_action("model_fetch", {"state": "started", "dest": "/models"}, **task_vars)


def test_host_without_a_part_is_left_alone(run_action: Any, source: Path) -> None:
    assert fetched(run_action, started(source, {"a": "present", "b": "missing"})).calls == []
    task_vars = {**started(source, {"a": "missing", "b": "present"}), "__models_started": {"started": False}}
    assert run_action("model_fetch", {"state": "stopped", "dest": "/models"}, **task_vars).calls == []


def test_check_mode_only_looks(run_action: Any, source: Path) -> None:
    task_vars = found({"a": "missing", "b": "missing"})
    for state in ("listed", "started", "fetched"):
        run = run_action(
            "model_fetch", {"state": state, "dest": "/models", "source": str(source)}, check=True, **task_vars
        )
        assert (run.calls, run.result["changed"]) == ([], False)
