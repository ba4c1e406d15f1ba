# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may reach servers, by the inventory's gateways."""

from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import addresses

NAMES = {"gw.example.com": ["192.0.2.10", "2001:db8::10"], "here.example.com": ["127.0.1.1"]}


def resolve(name: str) -> list[str]:
    return NAMES.get(name, [name] if name[0].isdigit() else [])


@pytest.mark.parametrize(
    ("wanted", "gateways", "allowed", "unknown"),
    [
        (["gateways"], {}, [], []),
        ([], {"g": "192.0.2.10"}, [], []),
        (["gateways"], {"g": "gw.example.com"}, ["192.0.2.10", "2001:db8::10"], []),
        (["gateways", "198.51.100.0/24"], {"g": "192.0.2.10"}, ["192.0.2.10", "198.51.100.0/24"], []),
        (["198.51.100.7"], {"g": None}, ["198.51.100.7"], []),
        # One that is not known leaves the servers open to all, and is said.
        (["gateways"], {"g": "192.0.2.10", "k": "nowhere"}, [], ["k"]),
        (["gateways"], {"g": None}, [], ["g"]),
        (["gateways"], {"g": "here.example.com"}, [], ["g"]),
    ],
)
def test_addresses_are_those_of_gateways(
    wanted: list[str], gateways: dict[str, str | None], allowed: list[str], unknown: list[str]
) -> None:
    assert addresses.allowed_addresses(wanted, gateways, resolve) == (allowed, unknown)


def test_name_is_resolved_and_address_is_not() -> None:
    assert addresses.resolved("192.0.2.1") == ["192.0.2.1"]
    assert addresses.resolved("no-such-host.invalid") == []


@pytest.mark.parametrize("value", ["gateway", "192.0.2.300", "192.0.2.1/8", "a b", "any\n"])
def test_invalid_address_is_refused(value: str) -> None:
    [error] = addresses.address_errors(["gateways", "::1", value])
    assert error.startswith(f"servers_allow_addresses has {value}: set it to addresses, networks")
