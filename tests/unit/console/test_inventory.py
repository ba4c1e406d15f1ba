# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory as ansible-inventory lists it: hosts, addresses, gateways; no secret; read again after a change."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from magi_llama_console.fleet import inventory
from magi_llama_console.fleet.inventory import InventoryError, InventoryReader, parse

PROGRAM = str(Path(sys.executable).with_name("ansible-inventory"))


def listing(groups: dict[str, Any], **variables: dict[str, Any]) -> dict[str, Any]:
    return {"_meta": {"hostvars": variables}, **groups}


def test_hosts_of_group_models_are_those_that_run_servers() -> None:
    found = parse(
        listing(
            {
                "all": {"children": ["ungrouped", "models", "gateways"]},
                "models": {"hosts": ["a"], "children": ["gpu"]},
                "gpu": {"hosts": ["b", "a"]},
                "gateways": {"hosts": ["g"]},
            },
            b={"ansible_host": "10.0.0.2", "servers_state_dir": "/srv/x", "profile": "fast", "vault": "secret"},
            g={"ansible_host": "10.0.0.9", "gateway_metrics_host": "0.0.0.0", "gateway_metrics_port": 9071},
        )
    )
    assert list(found.hosts) == ["a", "b"]
    host = found.hosts["b"]
    assert (host.address, host.states_dir, host.profile, host.groups) == (
        "10.0.0.2",
        "/srv/x",
        "fast",
        ("models", "gpu"),
    )
    assert found.gateways == ("http://10.0.0.9:9071/metrics",)
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ({"all": {"hosts": ["a", "g"]}, "gateways": {"hosts": ["g"]}}, ["a"]),
        ({"all": {"hosts": ["g"]}, "gateways": {"hosts": ["g"]}}, ["g"]),
        ({"all": {"hosts": ["a", "c", "r"]}, "console": {"hosts": ["c"]}, "redis": {"hosts": ["r"]}}, ["a"]),
        ({"all": {}}, ["localhost"]),
    ],
)
def test_without_group_models_all_but_those_of_other_groups_run_servers(
    groups: dict[str, Any], names: list[str]
) -> None:
    assert list(parse(listing(groups)).hosts) == names


def test_metrics_on_another_hosts_loopback_cannot_be_read() -> None:
    groups = {"all": {"hosts": ["g"]}, "gateways": {"hosts": ["g"]}}
    assert parse(listing(groups, g={"ansible_host": "10.0.0.9"})).gateways == ()
    local = {"ansible_connection": "local", "gateway_metrics_port": "{{ port }}"}
    assert parse(listing(groups, g=local)).gateways == ()


def test_template_is_not_taken_as_a_value() -> None:
    found = parse(listing({"all": {"hosts": ["a"]}}, a={"ansible_host": "{{ other }}"}))
    assert found.hosts["a"].address == "a"


def test_inventory_is_read_again_only_after_a_change(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    (folder / "group_vars").mkdir(parents=True)
    hosts = folder / "hosts.yml"
    hosts.write_text("all: {hosts: {a: {}}}\n")
    calls = tmp_path / "calls"
    program = tmp_path / "listing"
    program.write_text(f'#!/bin/sh\necho >> {calls}\nexec {PROGRAM} "$@"\n')
    program.chmod(0o755)
    reader = InventoryReader(folder, [str(program)], dict(os.environ))

    async def read() -> list[list[str]]:
        seen = [list((await reader.read()).hosts), list((await reader.read()).hosts)]
        (folder / "group_vars/all.yml").write_text("x: 1\n")
        hosts.write_text("all: {hosts: {a: {}, b: {}}}\n")
        return [*seen, list((await reader.read()).hosts)]

    assert asyncio.run(read()) == [["a"], ["a"], ["a", "b"]]
    assert calls.read_text().count("\n") == 2


def test_broken_inventory_is_an_error_that_names_it(tmp_path: Path) -> None:
    broken = tmp_path / "hosts.yml"
    broken.write_text("all: {hosts: [}\n")
    reader = InventoryReader(broken, [PROGRAM], {**os.environ, "ANSIBLE_INVENTORY_UNPARSED_FAILED": "1"})
    with pytest.raises(InventoryError, match=r"hosts\.yml"):
        asyncio.run(reader.read())


def test_broken_inventory_is_not_read_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [1000.0]
    monkeypatch.setattr(inventory, "monotonic", lambda: seconds[0])
    calls, program, hosts = tmp_path / "calls", tmp_path / "listing", tmp_path / "hosts.yml"
    hosts.write_text("wrong\n")
    program.write_text(f"#!/bin/sh\necho >> {calls}\necho 'ERROR! wrong' >&2\nexit 1\n")
    program.chmod(0o755)
    reader = InventoryReader(hosts, [str(program)], dict(os.environ))

    async def ask() -> int:
        with pytest.raises(InventoryError, match="ERROR! wrong"):
            await reader.read()
        return calls.read_text().count("\n")

    assert [asyncio.run(ask()) for _ in range(3)] == [1, 1, 1]
    hosts.write_text("still wrong\n")
    assert asyncio.run(ask()) == 2
    seconds[0] += inventory.ERROR_SECONDS
    assert asyncio.run(ask()) == 3
