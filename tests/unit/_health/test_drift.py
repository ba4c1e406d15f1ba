# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How what runs differs from what is deployed."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._health.drift import drift

ENV = {"MAGI_LLAMA_REVISION": "r1", "MAGI_LLAMA_RUNTIME": "b1", "MAGI_LLAMA_MODEL": "m1"}
SERVER: dict[str, Any] = {"name": "one", "argv": ["/bin/ls", "--port", "1"], "env": ENV, "revision": "r1"}


def process(name: str = "one", argv: tuple[str, ...] = ("/bin/ls", "--port", "1"), **env: str) -> Process:
    return Process(7, 1, name, argv, {**ENV, **env}, 0, 0.0, 0.0, 0)


def test_server_that_runs_as_deployed_is_no_drift() -> None:
    assert drift([SERVER], {"one": 7}, {"one": process()}, {}) == {}


def test_stopped_server_is_drift() -> None:
    assert drift([SERVER], {"one": None}, {}, {}) == {"one": "not running"}


def test_other_command_line_is_drift() -> None:
    other = process(argv=("/bin/ls", "--port", "2"), MAGI_LLAMA_REVISION="r0")
    assert drift([SERVER], {"one": 7}, {"one": other}, {}) == {"one": "--port 2 → 1"}


def test_other_launch_config_is_drift() -> None:
    assert drift([SERVER], {"one": 7}, {"one": process(MAGI_LLAMA_REVISION="r0")}, {}) == {
        "one": "its launch config changed"
    }


def test_launch_config_on_disk_is_drift_of_its_server() -> None:
    configs = {"one": "its launch config was edited", "/etc/common": "removed"}
    assert drift([SERVER], {"one": None}, {}, configs) == {
        "one": "not running; its launch config was edited",
        "/etc/common": "removed",
    }


def test_server_that_is_not_deployed_is_drift() -> None:
    assert drift([], {}, {"two": process("two")}, {}) == {"two": "runs and is not deployed"}


def test_unreadable_process_is_no_drift() -> None:
    """Nor is the server of a record that has no revision."""
    assert drift([SERVER], {"one": 7}, {}, {}) == {}
    assert drift([{"name": "one", "argv": []}], {"one": 7}, {"one": process()}, {}) == {}
