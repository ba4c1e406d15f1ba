# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs over different hosts that change one gateway at the same time: one waits for the other, and both are in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import files, state
from ansible_collections.magi.llama.plugins.module_utils._gateway.apply import Applied
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import GatewayError

FLOCK = fcntl.flock


class Watched:
    """HAProxy's side of a gateway, which notes how many runs are at it at once."""

    def __init__(self) -> None:
        self.at_once = self.most = 0
        # A run is at it; and the other one has come, to the lock that this one holds, or without it to HAProxy.
        self.is_busy, self.other_came = threading.Event(), threading.Event()
        self.read_meanwhile = False
        self.configurations: list[str] = []
        self._guard = threading.Lock()

    def apply(self, *arguments: Any) -> Applied:
        with self._guard:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            if self.at_once == 2:
                self.other_came.set()
        self.is_busy.set()
        assert self.other_came.wait(60)
        with self._guard:
            self.at_once -= 1
            self.configurations.append(arguments[4]["haproxy.cfg"])
        return Applied("servers")

    def read_fleet(self, places: files.Places) -> dict[str, Any]:
        self.read_meanwhile |= self.at_once > 0
        return files.read_fleet(places)

    def flock(self, descriptor: int, operation: int) -> None:
        try:
            FLOCK(descriptor, operation)
        except BlockingIOError:
            self.other_came.set()
            raise


@pytest.fixture
def haproxy(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(state, "apply", watched.apply)
    monkeypatch.setattr(state, "read_fleet", watched.read_fleet)
    monkeypatch.setattr(fcntl, "flock", watched.flock)
    monkeypatch.setattr(state, "haproxy_version", lambda *_: (3, 0))
    monkeypatch.setattr(state, "check_config", lambda *_: None)
    monkeypatch.setattr(state, "serving_servers", lambda *_: [])
    return watched


def run(folder: Path, host: str, warnings: list[str] | None = None, **more: Any) -> None:
    server = {"name": host, "model_id": "m", "kind": "model", "listens": "0.0.0.0", "port": 8080, "slots": 1}
    given = {
        **{"state_dir": str(folder), "name": "gw1", "service_manager": "supervisor", "program": "/x", "user": None},
        **{"settings": {}, "clients": "[]", "supervisord_path": None, "ready_timeout": 0.0, "ages": {}},
        "hosts": {host: {"address": f"192.0.2.{len(host)}", "servers": [server]}},
        "keys": json.dumps({host: []}),
        "inventory": ["a", "bb"],
        **more,
    }
    state.bring_to_state(given, None, warn=([] if warnings is None else warnings).append, dry_run=False)


def test_hosts_of_both_runs_are_in_the_gateway(tmp_path: Path, haproxy: Watched) -> None:
    (tmp_path / "g").mkdir()
    files.prepare(files.Places(str(tmp_path / "g")), None)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, tmp_path / "g", "a")
        assert haproxy.is_busy.wait(60)
        second = pool.submit(run, tmp_path / "g", "bb")
        first.result()
        second.result()
    assert haproxy.most == 1 and not haproxy.read_meanwhile
    # The second one has begun with what the first one left.
    found = [[host for host in ("a", "bb") if f"server {host}_8080" in one] for one in haproxy.configurations]
    assert found == [["a"], ["a", "bb"]]
    assert set(files.read_fleet(files.Places(str(tmp_path / "g")))) == {"a", "bb"}


def test_runs_without_the_lock_are_noticed(tmp_path: Path, haproxy: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails without it, on a machine of any speed."""
    monkeypatch.setattr(state, "locked", lambda *_, **_more: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        test_hosts_of_both_runs_are_in_the_gateway(tmp_path, haproxy)
    assert haproxy.most == 2


def test_host_that_was_removed_is_not_brought_back(tmp_path: Path, haproxy: Watched) -> None:
    """gateway.yml has listed it without its lock, and a teardown was faster."""
    haproxy.other_came.set()
    folder = tmp_path / "g"
    folder.mkdir()
    places = files.Places(str(folder))
    files.prepare(places, None)
    for host in ("a", "bb"):
        run(folder, host)
    run(folder, "bb", hosts={"bb": None})
    run(folder, "a")
    warnings: list[str] = []
    run(folder, "bb", warnings, ages={"bb": 30.0})
    assert set(files.read_fleet(places)) == {"a"}
    assert warnings == ["bb: another run has changed it meanwhile, and what the gateway knows of it is kept."]
    # An hour later nothing is known of it.
    files.write_documents(places, files.read_fleet(places), {}, {"a": 1.0, "bb": 1.0})
    assert files.read_changed(places) == {"a": 1.0}


def test_run_that_waits_for_too_long_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.2)
    places = files.Places(str(tmp_path))
    with (
        files.locked(places, dry_run=False),
        pytest.raises(GatewayError, match="Another run has been changing this gateway"),
        files.locked(places, dry_run=False),
    ):
        pass
