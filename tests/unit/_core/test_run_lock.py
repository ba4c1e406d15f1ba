# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._arguments.run_lock import WAITING
from ansible_collections.magi.llama.plugins.module_utils._core import run_lock

ROOT = Path(__file__).resolve().parents[3]


def run(name, playbook="site.yml"):
    return run_lock.Run(f"elsewhere.1/{name}/1", "ci-7.example.org", "anna", 4711, playbook)


MINE = run("mine").id


@pytest.fixture
def state(tmp_path):
    return str(tmp_path)


def test_lock_of_active_run_is_renewed(state):
    assert run_lock.acquire(state, run("mine"), lease=10) is None
    since = run_lock.holder(state).run.since
    run_lock.renew(state, run("mine").id)
    held = run_lock.holder(state)
    assert held.seconds_left > run_lock.LEASE_SECONDS - 10
    assert held.run.since == since


def test_lease_for_a_long_wait_is_not_shortened_by_a_renewal(state):
    """Its host waits for its turn, and what the run does there before renews the lock for the usual time."""
    run_lock.acquire(state, run("mine"), lease=1200)
    run_lock.renew(state, MINE)
    assert run_lock.holder(state).seconds_left > 1100
    run_lock.release(state, MINE)
    run_lock.acquire(state, run("other"))
    assert run_lock.holder(state).seconds_left < run_lock.LEASE_SECONDS + 1


def test_lock_expired_is_reacquired_by_its_run(state):
    assert run_lock.acquire(state, run("mine"), lease=0.01) is None
    time.sleep(0.05)
    assert run_lock.holder(state) is None
    run_lock.renew(state, run("mine").id)
    held = run_lock.acquire(state, run("other"))
    assert held is not None and held.run.id == run("mine").id


def test_lock_expired_and_taken_refuses_its_run(state):
    assert run_lock.acquire(state, run("mine"), lease=0.01) is None
    time.sleep(0.05)
    assert run_lock.acquire(state, run("other", "rollout.yml")) is None
    with pytest.raises(run_lock.LockError, match=r"Another run is changing this host: rollout\.yml by anna"):
        run_lock.renew(state, run("mine").id)
    assert run_lock.holder(state).run.id == run("other").id


def test_lock_expired_or_released_is_not_acquired_by_renewal(state):
    run_lock.renew(state, run("mine").id)
    assert not os.path.exists(run_lock.lock_path(state))
    run_lock.acquire(state, run("other"), lease=0.01)
    time.sleep(0.05)
    run_lock.renew(state, run("mine").id)
    run_lock.renew(state, None)
    assert run_lock.holder(state) is None
    run_lock.acquire(state, run("mine"))
    assert run_lock.release(state, run("mine").id)
    run_lock.renew(state, run("mine").id)
    assert run_lock.holder(state) is None


def test_lock_renewal_failure_does_not_stop_its_run(state, monkeypatch):
    run_lock.acquire(state, run("mine"))
    monkeypatch.setattr(os, "pwrite", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    run_lock.renew(state, run("mine").id)


def test_lock_released_without_deployment_leaves_no_file(state):
    run_lock.acquire(state, run("mine"))
    assert run_lock.release(state, run("mine").id)
    assert os.listdir(state) == []
    # Next to a deployment the file stays, for runs that have it open.
    run_lock.acquire(state, run("mine"))
    open(os.path.join(state, "deployment.json"), "w").close()
    assert run_lock.release(state, run("mine").id)
    assert sorted(os.listdir(state)) == ["deployment.json", "run.lock"]


def test_lock_of_run_that_waited_while_file_was_removed_is_found_by_others(state, monkeypatch):
    run_lock.acquire(state, run("first"))
    flock = fcntl.flock

    def release_first(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        # It is opened, and then the file is removed before flock.
        run_lock.release(state, run("first").id)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", release_first)
    assert run_lock.acquire(state, run("second")) is None
    assert run_lock.holder(state).run.id == run("second").id


def test_run_whose_lock_was_taken_over_changes_nothing_more(state):
    assert run_lock.acquire(state, run("mine"), lease=0.01) is None
    time.sleep(0.05)
    assert run_lock.acquire(state, run("other")) is None
    with pytest.raises(run_lock.LockError, match="Another run is changing this host"):
        run_lock.renew(state, MINE)
    assert run_lock.release(state, run("other").id)
    with pytest.raises(run_lock.LockError, match="Another run has changed this host since"):
        run_lock.renew(state, MINE)
    # A run that never had the lock, and the same one once it has it again.
    run_lock.renew(state, run("third").id)
    assert run_lock.acquire(state, run("mine")) is None
    run_lock.renew(state, MINE)


def test_lock_is_renewed_while_a_module_works(state):
    assert run_lock.acquire(state, run("mine"), lease=0.4) is None
    with run_lock.keep_renewed(state, MINE, lease=0.4) as confirm:
        time.sleep(1.0)
        assert run_lock.holder(state).run.id == MINE
        confirm()
        assert run_lock.acquire(state, run("other"), dead=MINE) is None
        with pytest.raises(run_lock.LockError):
            confirm()
    with pytest.raises(run_lock.LockError), run_lock.keep_renewed(state, MINE):
        raise AssertionError("it was begun")


def test_lease_is_not_longer_than_a_run_waits():
    assert WAITING["wait"]["default"] >= run_lock.LEASE_SECONDS
    defaults = yaml.safe_load((ROOT / "roles/servers/defaults/main.yml").read_text())
    assert defaults["servers_lock_wait"] >= run_lock.LEASE_SECONDS
