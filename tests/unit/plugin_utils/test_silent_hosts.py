# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A silent host never holds the others: preflight names the line that is missing in ansible.cfg."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.plugin_utils.silent_hosts import advice, without_keep_alive

ALIVE = "-o ServerAliveInterval=10"


@pytest.fixture(autouse=True)
def no_setting_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_SSH_ARGS", "-o ControlMaster=auto")


def test_only_hosts_by_ssh_without_keep_alive_are_named() -> None:
    hosts = {
        "plain": {},
        "local": {"ansible_connection": "local"},
        "args": {"ansible_ssh_args": ALIVE},
        "common": {"ansible_ssh_common_args": ALIVE.lower()},
    }
    assert without_keep_alive(hosts) == ["plain"]
    assert "ssh_args = -o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=10" in advice(["plain"])


def test_setting_for_all_hosts_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_SSH_ARGS", ALIVE)
    assert without_keep_alive({"plain": {}}) == []
