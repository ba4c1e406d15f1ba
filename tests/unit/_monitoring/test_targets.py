# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who reaches the exporters: nothing is open that was not opened, and nothing is watched that cannot be reached."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._monitoring.targets import (
    MonitoringError,
    exporter_access,
    exporter_targets,
)

GROUPS = {"all": ["a", "b", "w"], "models": ["a", "b"], "monitoring": ["w"]}


def targets(**hosts: dict[str, Any]) -> list[tuple[str, str]]:
    found = exporter_targets(GROUPS, {"a": {}, "b": {}, **hosts}, "w")
    return [(one["targets"][0], one["labels"]["host"]) for one in found]


def test_targets_are_the_hosts_with_servers() -> None:
    found = targets(
        a={"monitoring_exporter_host": "10.0.0.1"},
        b={"monitoring_exporter_host": "::", "ansible_host": "fd00::2", "monitoring_exporter_port": 9200},
    )
    assert found == [("10.0.0.1:9105", "a"), ("[fd00::2]:9200", "b")]


def test_exporter_that_prometheus_does_not_reach_is_an_error() -> None:
    with pytest.raises(
        MonitoringError, match=r"b: monitoring_exporter_host is 127[.]0[.]0[.]1, where w does not reach it"
    ):
        targets(a={"monitoring_exporter_host": "10.0.0.1"})


def test_host_that_watches_itself_needs_no_open_port() -> None:
    found = exporter_targets({"all": ["a"], "monitoring": ["a"]}, {"a": {"ansible_host": "10.0.0.1"}}, "a")
    assert [one["targets"] for one in found] == [["127.0.0.1:9105"]]


def test_exporter_is_open_to_no_one_that_is_not_named() -> None:
    assert exporter_access("127.0.0.1") == {"IPAddressDeny": "any", "IPAddressAllow": "localhost"}
    # Servers that listen on the host's own address are asked there.
    assert exporter_access("127.0.0.1", [], "10.0.0.1")["IPAddressAllow"] == "localhost 10.0.0.1"
    assert exporter_access("10.0.0.1", ["10.0.0.5"], "10.0.0.1")["IPAddressAllow"] == "localhost 10.0.0.1 10.0.0.5"
    assert exporter_access("0.0.0.0", ["10.0.0.5"])["IPAddressAllow"] == "localhost 10.0.0.5"
    with pytest.raises(MonitoringError, match="monitoring_exporter_allow_addresses is empty"):
        exporter_access("10.0.0.1")
