# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs over different hosts that change one gateway at the same time: one waits for the other, and both are in it."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import files, state
from ansible_collections.magi.llama.plugins.module_utils._gateway.apply import Applied
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import GatewayError


class Watched:
    """HAProxy's side of a gateway, which notes how many runs are at it at once."""

    def __init__(self) -> None:
        self.at_once = self.most = 0
        self.configurations: list[str] = []
        self._guard = threading.Lock()

    def apply(self, *arguments: Any) -> Applied:
        with self._guard:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        # The other run has begun by now.
        time.sleep(0.3)
        with self._guard:
            self.at_once -= 1
            self.configurations.append(arguments[4]["haproxy.cfg"])
        return Applied("servers")


@pytest.fixture
def haproxy(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(state, "apply", watched.apply)
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
        for done in [pool.submit(run, tmp_path / "g", host) for host in ("a", "bb")]:
            done.result()
    assert haproxy.most == 1
    first, last = haproxy.configurations
    assert "server a_8080" in last and "server bb_8080" in last
    # The second one has begun with what the first one left.
    assert ("server a_8080" in first) != ("server bb_8080" in first)
    assert set(files.read_fleet(files.Places(str(tmp_path / "g")))) == {"a", "bb"}


def test_host_that_was_removed_is_not_brought_back(tmp_path: Path, haproxy: Watched) -> None:
    """gateway.yml has listed it without its lock, and a teardown was faster."""
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
