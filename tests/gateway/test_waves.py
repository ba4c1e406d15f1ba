# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of servers behind a gateway, with requests all the time: none may fail, be cut, or be answered by another."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import holder
from support.gateway import KEY, PROFILES, Q2, Q3, Q4, Gateway
from support.load import under_load

MODELS = (Q2, Q3, Q4)


@contextmanager
def requests(gateway: Gateway, folder: Path, models: tuple[str, ...] = MODELS) -> Iterator[Counter[str]]:
    """Ask for these models while the block runs; at its end the outcomes are counted."""
    with under_load(gateway.url, models, KEY, folder / "stop") as answers:
        yield answers.outcomes


def profile(gateway: Gateway, name: str, like: str, **parameters: Any) -> None:
    """Set a profile that is like one of the others, with more parameters for each server."""
    content = {**PROFILES[like], "parameters": {**PROFILES[like]["parameters"], **parameters}}
    (gateway.bed.inventory / "profiles" / f"{name}.yml").write_text(json.dumps(content))
    gateway.set(profile=name)


def contexts(gateway: Gateway) -> dict[str, str]:
    """The context of each server that runs."""
    argvs = {name: process.argv for name, process in gateway.bed.processes().items()}
    return {name: argv[argv.index("--ctx-size") + 1] for name, argv in argvs.items()}


def ports(gateway: Gateway) -> dict[str, int]:
    return {name: server["port"] for name, server in gateway.bed.status().items()}


@pytest.fixture
def three(gateway: Gateway) -> Gateway:
    """One server of each model."""
    gateway.set(profile="three", gateway_drain_timeout=20)
    gateway.bed.run("site")
    gateway.wait_up(3)
    return gateway


def test_changed_flags_reach_servers_by_stand_ins(three: Gateway, tmp_path: Path) -> None:
    before, pids = ports(three), three.bed.pids()
    profile(three, "larger", "three", ctx_size=2048)
    plan = three.bed.run("plan")
    plan.expect("surge   tiny-llama-q2_k", "tiny-llama-q2_k-surge", "with at most", "on the way")
    with requests(three, tmp_path) as outcomes:
        three.bed.run("site").expect("3 enabled, 3 launched, 3 ready")
    assert outcomes.keys() == {"ok"}, outcomes
    assert ports(three) == before
    assert not set(pids.values()) & set(three.bed.pids().values())
    assert contexts(three) == dict.fromkeys(MODELS, "2048")
    assert three.bed.run("site").changed == 0


def test_stand_ins_that_take_turns_at_a_port_reach_the_gateway(gateway: Gateway, tmp_path: Path) -> None:
    """Four servers with two free ports: a stand-in of a later step has the port of an earlier one."""
    profile(gateway, "four-larger", "four", ctx_size=4096)
    with requests(gateway, tmp_path) as outcomes:
        gateway.bed.run("site").expect("4 launched, 4 ready")
    assert outcomes.keys() == {"ok"}, outcomes


def test_profile_switch_and_its_way_back(three: Gateway, tmp_path: Path) -> None:
    with requests(three, tmp_path, (Q2, Q3)) as outcomes:
        three.set(profile="two")
        three.bed.run("site")
        assert sorted(three.bed.pids()) == [Q2, Q3]
        three.set(profile="four")
        three.bed.run("site")
    assert outcomes.keys() == {"ok"}, outcomes
    assert len(three.bed.pids()) == 4


def test_instances_are_restarted_one_after_another(gateway: Gateway, tmp_path: Path) -> None:
    pids = gateway.bed.pids()
    with requests(gateway, tmp_path, (Q4,)) as outcomes:
        gateway.bed.run("restart", "-e", f"servers={Q4},{Q4}-2")
    assert outcomes.keys() == {"ok"}, outcomes
    changed = {name for name, pid in gateway.bed.pids().items() if pids[name] != pid}
    assert changed == {Q4, f"{Q4}-2"}


def test_restart_that_leaves_a_model_away_wants_permission(three: Gateway) -> None:
    pids = three.bed.pids()
    refused = three.bed.run("restart", "-e", f"servers={Q4}", code=2)
    refused.expect(f"this model is away: {Q4}", "allow_downtime=true")
    assert three.bed.pids() == pids
    three.bed.run("restart", "-e", f"servers={Q4}", "-e", "allow_downtime=true")
    three.wait_up(3)
    assert {name for name, pid in three.bed.pids().items() if pids[name] != pid} == {Q4}


def test_stopped_server_answers_what_it_has_begun(three: Gateway) -> None:
    body = {"model": Q4, "prompt": "a", "max_tokens": 300, "stream": True, "ignore_eos": True}
    with three.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        run = three.bed.start("stop", "-e", f"servers={Q4}")
        rest = [line for line in lines if line]
        output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert rest[-1] == "data: [DONE]"
    answered = three.complete(Q4)
    assert answered.status_code == 503
    assert int(answered.headers["retry-after"]) > 0
    three.bed.run("start", "-e", f"servers={Q4}")
    assert three.served_by(Q4) == Q4


def test_requests_that_exceed_the_drain_are_counted(three: Gateway) -> None:
    """A server with a request that continues is stopped all the same, and the run says what it cost."""
    three.set(gateway_drain_timeout=1)
    # Not one that hangs: the gateway may end its request before the run looks.
    with three.stream(Q4):
        stopped = three.bed.run("stop", "-e", f"servers={Q4}")
    # A busy machine notices a little later.
    stopped.expect("1 request is not over after 1")
    three.set(gateway_drain_timeout=20)
    three.bed.run("start", "-e", f"servers={Q4}")
    three.wait_up(3)


def test_new_servers_that_fail_leave_the_old_ones_serving(three: Gateway, tmp_path: Path) -> None:
    before, pids = contexts(three), three.bed.pids()
    # Only the server notices that this model cannot be an adapter.
    profile(three, "broken", "three", ctx_size=512, lora=str(three.bed.models / "tiny-llama-Q2_K.gguf"))
    with requests(three, tmp_path) as outcomes:
        three.bed.run("site", code=2).expect("No server was stopped", "its launch configs are restored")
    assert outcomes.keys() == {"ok"}, outcomes
    assert (contexts(three), three.bed.pids()) == (before, pids)
    three.set(profile="three")
    # Nothing is left to be put right.
    assert three.bed.run("site").changed == 0


def test_rollback_under_load(three: Gateway, tmp_path: Path) -> None:
    before = contexts(three)
    profile(three, "larger", "three", ctx_size=4096)
    three.bed.run("site")
    with requests(three, tmp_path, (Q2, Q3, Q4)) as outcomes:
        three.bed.run("rollback")
    # Deployed servers have no stand-ins: those of a model without another one are restarted in place.
    assert outcomes["ok"] > 0
    assert outcomes.keys() <= {"ok", "503"}, outcomes
    assert contexts(three) == before


def test_two_runs_at_once_take_turns_and_lose_no_request(three: Gateway, tmp_path: Path) -> None:
    sizes = {"first": "1792", "second": "1920"}
    for name, size in sizes.items():
        profile(three, name, "three", ctx_size=int(size))
    with requests(three, tmp_path) as outcomes, ThreadPoolExecutor(2) as pool:
        runs, outputs = [], []
        for name in sizes:
            run = three.bed.start("site", "-e", f"profile={name}", "-e", "servers_lock_wait=200")
            runs.append(run)
            outputs.append(pool.submit(run.communicate, timeout=three.bed.run_seconds))
            # The second one begins once the first one has the lock, which it then waits for.
            while holder(str(three.bed.state)) is None and run.poll() is None:
                time.sleep(0.05)
        texts = [output.result()[0] for output in outputs]
    assert [run.returncode for run in runs] == [0, 0], "".join(texts)
    assert ["waiting for another run on this host" in text for text in texts] == [False, True], "".join(texts)
    assert outcomes.keys() == {"ok"}, outcomes
    assert contexts(three) == dict.fromkeys(MODELS, sizes["second"])
    assert three.bed.run("site", "-e", "profile=second").changed == 0
    assert {name: three.served_by(name) for name in MODELS} == {name: name for name in MODELS}


# Where a run is killed: a task of its steps, and how often that has begun. Stand-ins start in the first step; in the
# second one the servers are drained and restarted.
KILLED_AT = {
    1152: ("Start, restart and stop servers", 1),
    1280: ("Let the gateways send requests to them", 1),
    1408: ("Wait until they have answered their requests", 1),
    1536: ("Start, restart and stop servers", 2),
    1664: ("Let the gateways send no new requests to them", 2),
}


@pytest.mark.parametrize("size", KILLED_AT, ids=lambda size: "-".join(map(str, KILLED_AT[size])))
def test_killed_run_leaves_all_models_served_and_is_completed(three: Gateway, tmp_path: Path, size: int) -> None:
    task, count = KILLED_AT[size]
    profile(three, f"size-{size}", "three", ctx_size=size)
    with requests(three, tmp_path) as outcomes:
        run = three.bed.start("site", env={"ANSIBLE_DISPLAY_OK_HOSTS": "true"})
        seen = 0
        for line in run.stdout or ():
            seen += f"{task}]" in line
            if seen == count:
                break
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        assert seen == count, "the run ended before"
        three.bed.run("site", "-e", "servers_lock_take_over=true").expect("3 ready")
    assert outcomes.keys() == {"ok"}, outcomes
    assert contexts(three) == dict.fromkeys(MODELS, str(size))
    assert three.bed.run("site").changed == 0
