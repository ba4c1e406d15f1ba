# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""decommission.yml on hosts whose models no other host has ready."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._deployment.state_files import state_files
from ansible_collections.magi.llama.plugins.module_utils._launch.config_files import write_all

from .test_results import UNREACHABLE, Fleet


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Two hosts with a server each, which do not run, and one that cannot be reached."""
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        fleet = Fleet(Path(folder))
        for host, server in {"one": "a", "two": "b"}.items():
            fleet.add(host, servers_keep_runtime=True)
            servers = [
                {
                    **{"name": server, "model_id": server, "host": "127.0.0.1", "port": 1, "argv": ["/x"]},
                    **{"stop_timeout": 1, "max_startup_time": 1},
                }
            ]
            record = {"profile": "p", "service_manager": "supervisor", "start": None, "servers": servers}
            write_all(state_files(str(fleet.folder / host), record)[0])
        fleet.add("three", **UNREACHABLE)
        yield fleet


def test_last_host_of_a_model_leaves_only_where_that_is_accepted(fleet: Fleet) -> None:
    output = " ".join(fleet.run("decommission", "-e", "target=one", code=2).split())
    assert "models of one that run elsewhere: a: on no other host" in output
    assert "No other host has a ready. Nothing was changed" in output
    assert (fleet.folder / "one/deployment.json").exists()
    output = fleet.run("decommission", "-e", "target=one", "-e", "allow_downtime=true")
    assert "one has left the fleet: take it out of the inventory" in output
    assert not (fleet.folder / "one").exists() and (fleet.folder / "two/deployment.json").exists()


def test_host_that_does_not_say_what_it_serves_stays(fleet: Fleet) -> None:
    (fleet.folder / "one/deployment.json").write_text("{")
    output = " ".join(fleet.run("decommission", "-e", "target=one", "-e", "allow_downtime=true", code=2).split())
    assert "What this host serves is not known. Nothing was changed." in output and "is damaged" in output
    assert (fleet.folder / "one/deployment.json").exists()


def test_hosts_have_to_be_named(fleet: Fleet) -> None:
    output = " ".join(fleet.run("decommission", code=2).split())
    assert "decommission needs the variable target" in output and "models of" not in output
