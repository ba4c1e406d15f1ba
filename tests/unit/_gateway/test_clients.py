# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway's clients: what gateway_api_keys may have, and what is kept of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import (
    Client,
    client_entry,
    client_maps,
    missing_grants,
    parse_clients,
)
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, running, server

KEY = "a-key-of-alice"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def test_client_is_known_by_digest_only() -> None:
    limits = {"rate_per_minute": 60, "priority": -1, "tokens_per_minute": 9, "quota_tokens": 99, "quota_period": "day"}
    [client] = parse_clients([{"name": "alice", "key": KEY, "models": ["m"], **limits}])
    assert client == Client("alice", DIGEST, ("m",), 60, -1, 9, 99, "day")
    assert parse_clients([client_entry(client)]) == [client]
    assert KEY not in str(client_entry(client))


def test_maps_have_what_haproxy_looks_up() -> None:
    maps = client_maps([Client("alice", DIGEST, ("m",), 60, -1), Client("bob", "0" * 64)], {"m": ["m"]})
    assert maps["keys.map"] == {DIGEST.upper(): "alice", "0" * 64: "bob"}
    assert maps["limits.map"] == {"alice": 60}
    assert maps["priorities.map"] == {"alice": -1}
    limited = client_maps([Client("alice", DIGEST, tokens_per_minute=9, quota_tokens=99, quota_period="day")], {})
    assert (limited["tokens.map"], limited["quotas.map"]) == ({"alice": 9}, {"alice": "day 99"})
    assert maps["restricted.map"] == {"alice": 1}
    assert maps["grants.map"] == {"alice|m": 1}


def test_any_name_of_a_model_may_be_allowed() -> None:
    names = {"m": ["m-q8", "m-q4"], "m-q8": ["m-q8"], "m-q4": ["m-q4"], "n": ["n"], "chat": ["n", "m-q4"]}
    clients = [Client("a", DIGEST, ("m",)), Client("b", "0" * 64, ("chat", "gone")), Client("c", "1" * 64)]
    assert client_maps(clients, names)["grants.map"].keys() == {"a|m-q8", "a|m-q4", "b|n", "b|m-q4"}
    assert client_maps(clients, names)["restricted.map"].keys() == {"a", "b"}
    assert missing_grants(clients, names) == [
        "gateway_api_keys (b).models: no server has gone; there are chat, m, m-q4, m-q8, n."
    ]


@pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
def test_client_may_use_what_its_names_lead_to(tmp_path: Path) -> None:
    with FakeServer("a-q4") as first, FakeServer("b-q4") as second:
        backends = [
            Backend("a-q4", "A", "Q4", "model", (server(first.port),)),
            Backend("b-q4", "B", "Q4", "model", (server(second.port),)),
        ]
        clients = [
            Client("family", hashlib.sha256(b"key-of-family").hexdigest(), ("a",)),
            Client("alias", hashlib.sha256(b"key-of-alias").hexdigest(), ("chat",)),
            Client("gone", hashlib.sha256(b"key-of-gone").hexdigest(), ("gone",)),
        ]
        with running(tmp_path, backends, clients, aliases={"chat": "b-q4"}) as gateway:
            found = {
                who: [gateway.ask(model, f"key-of-{who}").status_code for model in ("a-q4", "a", "b-q4", "chat")]
                for who in ("family", "alias", "gone")
            }
            assert found == {
                "family": [200, 200, 403, 403],
                "alias": [403, 403, 200, 200],
                "gone": [403, 403, 403, 403],
            }


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"key": KEY}], "gateway_api_keys[0].name must be 1 to 64 letters"),
        ([{"name": "a b", "key": KEY}], "not 'a b'"),
        ([{"name": "a"}], "needs either key or sha256"),
        ([{"name": "a", "key": KEY, "sha256": DIGEST}], "needs either key or sha256"),
        ([{"name": "a", "key": "short"}], "must have 8 characters or more"),
        ([{"name": "a", "key": "with space"}], "no white space"),
        ([{"name": "a", "sha256": "12"}], "64 digits of hex"),
        ([{"name": "a", "key": KEY, "rate": 1}], "unknown rate; there are name, key, sha256"),
        ([{"name": "a", "key": KEY, "rate_per_minute": -1}], "rate_per_minute must be a whole number from 0"),
        ([{"name": "a", "key": KEY, "models": "m"}], "models must be a list"),
        ([{"name": "a", "key": KEY}, {"name": "a", "key": KEY + "2"}], "gateway_api_keys[1].name: a is there twice"),
        ([{"name": "a", "key": KEY}, {"name": "b", "key": KEY}], "gateway_api_keys[1] (b) has the key of a"),
        (["a"], "must be a mapping"),
        ([{"name": "a", "key": KEY, "quota_tokens": -1}], "quota_tokens must be a whole number from 0"),
        ([{"name": "a", "key": KEY, "quota_period": "year"}], "quota_period must be day or month, not 'year'"),
    ],
)
def test_invalid_client_is_refused_without_its_key(entries: list[Any], says: str) -> None:
    with pytest.raises(GatewayError) as error:
        parse_clients(entries)
    assert says in str(error.value)
    assert KEY not in str(error.value)


def test_all_invalid_clients_are_named_at_once() -> None:
    with pytest.raises(GatewayError) as error:
        parse_clients([{"name": "a"}, {"name": "b"}])
    assert "[0]" in str(error.value)
    assert "[1]" in str(error.value)
