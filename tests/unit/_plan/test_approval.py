# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a run has the plan that was approved, and what is said where it has not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import result_document
from ansible_collections.magi.llama.plugins.module_utils._plan.approval import (
    ApprovalError,
    Approved,
    approved_document,
    compare,
    host_error,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.plan_changes import plan_changes
from ansible_collections.magi.llama.plugins.module_utils._plan.plan_hash import fleet_hash, host_hash

LAST = (
    "Nothing was changed on any host. Run plan.yml again, with the same hosts, and apply its new hash if that is what "
    "you want."
)


def server(name: str = "a", action: str = "keep", context: int = 8, **more: Any) -> dict[str, Any]:
    env = {"MAGI_LLAMA_MODEL": "m", "MAGI_LLAMA_RUNTIME": "r", "MAGI_LLAMA_REVISION": str(context)}
    return {
        **{"name": name, "model_id": name, "port": 8080, "action": action, "reason": "runs as planned"},
        **{"argv": ["/usr/bin/llama-server", "--ctx-size", str(context)], "env": env, "revision": str(context)},
        **more,
    }


def plan(*servers: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {"profile": "p", "start": {}, "servers": list(servers or [server()]), "configs": {}, **more}
    return {**found, "hash": host_hash(found)}


def errors(before: Mapping[str, Any], now: Mapping[str, Any], *hosts: str) -> dict[str, list[str]]:
    """The lines for each host where the document of the plan before is applied."""
    approved = approved_document(result_document("plan", before), "plan.json")
    verdict = compare(approved, now, hosts or list(now))
    assert not verdict.is_approved
    return {name: text.splitlines() for name, text in verdict.errors.items()}


def test_same_plan_is_approved_by_its_document_its_hash_and_the_beginning_of_it() -> None:
    plans = {"one": plan(), "two": plan(server("b"))}
    document = result_document("plan", plans)
    for approved in (
        approved_document(document, "plan.json"),
        Approved(document["hash"]),
        Approved(document["hash"][:16]),
    ):
        verdict = compare(approved, plans, ["two", "one"])
        assert (verdict.is_approved, verdict.hash, verdict.errors) == (True, document["hash"], {})


def test_host_that_differs_is_named_with_server_and_what_differs() -> None:
    before = {"one": plan(), "two": plan()}
    now = {"one": plan(), "two": plan(server(action="restart", context=9, reason="--ctx-size 8 → 9"))}
    digits = str(fleet_hash(before))[:16]
    said = errors(before, now)
    assert said["two"] == [
        f"This is no longer the plan {digits}: two differs.",
        "  two: a: was to keep, is to restart now, --ctx-size 8 → 9; --ctx-size 8 → 9",
        LAST,
    ]
    assert said["one"] == [said["two"][0], LAST]


def test_other_hosts_than_those_of_the_plan_are_named() -> None:
    before = {"one": plan(), "two": plan()}
    assert errors(before, {"one": plan()})["one"][1] == "  two: the plan has this host, this run has not"
    said = errors({"one": plan()}, {"one": plan(), "new": plan()})
    assert said["new"][1] == "  new: this run has this host, the plan has not"


def test_host_that_cannot_be_planned_now_ends_the_run_for_all() -> None:
    said = errors({"one": plan(), "two": plan()}, {"one": plan()}, "one", "two")
    assert said == {"one": [said["one"][0], "  two: it could not be planned now", LAST]}
    verdict = compare(Approved("0" * 16), {"one": plan()}, ["one", "two"])
    assert verdict.hash is None
    assert verdict.errors["one"].startswith(
        "This cannot be compared with the plan 0000000000000000, as there is none for two now."
    )


def test_with_a_hash_alone_what_would_be_done_is_said() -> None:
    now = {"one": plan(server(action="start", reason="not running")), "two": plan()}
    verdict = compare(Approved("0" * 16), now, ["one", "two"])
    first, second, last = verdict.errors["one"].splitlines()
    assert f"it is {str(verdict.hash)[:16]} now" in first
    assert "(-e apply=plan.json)" in first
    assert (second, last) == ("  one: a to start, not running", LAST)
    assert verdict.errors["two"].splitlines()[1] == "  two: nothing is to be done"


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (plan(server(env={**server()["env"], "MAGI_LLAMA_MODEL": "n"})), "a: the model's file changed"),
        (plan(server(env={**server()["env"], "MAGI_LLAMA_RUNTIME": "n"})), "a: llama-server itself changed"),
        (plan(server(port=8081)), "a: port 8080 → 8081"),
        (plan(server(stop_timeout=3)), "a: stop_timeout None → 3"),
        (plan(server(revision="x")), "a: its launch config changed"),
        (plan(server(argv_diff=["- --jinja"])), "a: what runs there now is another command line"),
        (plan(server("b")), "a: to keep, runs as planned; not any more"),
        (plan(server(), server("b", "start")), "b: to start, runs as planned; not before"),
        (plan(profile="q"), "profile p → q"),
        (plan(waves=[{"drain": ["a"]}]), "waves changed"),
        (plan(configs={"/c": "0"}), "the launch config /c differs"),
    ],
)
def test_each_difference_is_a_sentence(now: dict[str, Any], says: str) -> None:
    assert host_hash(now) != host_hash(plan())
    found = plan_changes(plan(), now)
    assert says in found
    assert len(found) == 1 + (says.startswith("a: to keep"))


def test_many_differences_are_cut() -> None:
    servers = [server(f"s{number}") for number in range(30)]
    said = errors({"one": plan()}, {"one": plan(*servers)})["one"]
    assert len(said) == 23
    assert said[-2] == "  and 11 more"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (result_document("status", {}), "plan.json is a document of status.yml, not one of plan.yml."),
        (result_document("plan", {"b": {"task": None, "error": "e"}}), "has no hash, as there is no plan for b."),
        (result_document("plan", {"b": {**plan(), "profile": "q"}}), "is not as plan.yml wrote it for b: run plan.yml"),
        ({**result_document("plan", {"b": plan()}), "hash": "0" * 64}, "is not as plan.yml wrote it: run plan.yml"),
    ],
)
def test_document_that_approves_nothing_is_refused(document: dict[str, Any], says: str) -> None:
    with pytest.raises(ApprovalError) as caught:
        approved_document(document, "plan.json")
    assert says in str(caught.value)


def test_under_the_lock_a_changed_plan_of_the_host_is_refused() -> None:
    error = host_error(plan(), plan(server(action="start", reason="not running")))
    assert error is not None
    assert error.splitlines()[1:] == [
        "  a: was to keep, is to start now, not running",
        "Nothing was started or stopped on this host. " + LAST.partition("host. ")[2],
    ]
    assert host_error(plan(), {**plan(), "warnings": ["w"]}) is None


def test_under_the_lock_what_earlier_batches_change_does_not_count() -> None:
    stand_in = server("a-surge", "start", stands_in_for="a")
    before = plan(server(action="restart", change="away"), waves=[{"drain": ["a"]}])
    assert host_error(before, plan(server(action="restart", change="surge"), stand_in, waves=[])) is None
    assert host_error(before, plan(server(), waves=[{"drain": ["a"]}])) is not None


def test_plan_made_before_there_was_a_llama_server_counts_without_it() -> None:
    preview = plan(server(action="start", env={"MAGI_LLAMA_MODEL": "m", "MAGI_LLAMA_RUNTIME": ""}))
    assert host_error(preview, plan(server(action="start", context=9))) is None
    other = server(action="start", env={"MAGI_LLAMA_MODEL": "n", "MAGI_LLAMA_RUNTIME": "r"})
    assert "the model's file changed" in str(host_error(preview, plan(other)))
    assert "port 8080 → 8081" in str(host_error(preview, plan(server(action="start", port=8081))))
