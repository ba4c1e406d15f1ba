# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that are replaced while the gateway serves: those of clients, and the servers' own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._gateway import fleet
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import parse_map
from ansible_collections.magi.llama.plugins.module_utils._gateway.apply import map_steps
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.files import compare
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError
from ansible_collections.magi.llama.plugins.module_utils._gateway.server_keys import (
    HostKeys,
    keys_of,
    next_keys,
    read_host_keys,
    refuse_replaced,
    with_old_keys,
    written_keys,
)
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import stamp_of
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, rendered, running, server


def client(name: str, key: str, models: tuple[str, ...] = ()) -> Client:
    return Client(name, hashlib.sha256(key.encode()).hexdigest(), models)


BACKENDS = [Backend("m", "M", None, "model", (server(1),)), Backend("n", "N", None, "model", (server(2),))]


def steps(before: list[Client], after: list[Client]) -> list[tuple[str, list[str]]]:
    old, new = rendered(BACKENDS, before), rendered(BACKENDS, after)
    change = compare(old, new)
    assert change.how == "maps"
    return [
        (name, sorted({*content.values()} if name == "keys.map" else content))
        for name, content in map_steps(change.files, old, new)
    ]


def uses(before: list[Client], after: list[Client], one: Client) -> list[str]:
    """What the key of this client opens, before, after each step, and at the end: refused, or models; any for all."""
    old, new = rendered(BACKENDS, before), rendered(BACKENDS, after)
    maps = {name: parse_map(text) for name, text in old.items() if name.endswith(".map")}
    found = []
    for name, content in [("keys.map", maps["keys.map"]), *map_steps(compare(old, new).files, old, new)]:
        maps[name] = content
        known = maps["keys.map"].get(one.digest.upper())
        granted = [model for model in "mn" if f"{known}|{model}" in maps["grants.map"]]
        opened = "".join(granted) if known in maps["restricted.map"] else "any"
        found.append("refused" if known is None else opened)
    assert maps == {name: parse_map(text) for name, text in new.items() if name.endswith(".map")}
    return [use for number, use in enumerate(found) if found[number - 1 : number] != [use]]


def test_key_of_a_client_is_replaced_in_one_change() -> None:
    assert steps([client("a", "old")], [client("a", "new")]) == [("keys.map", ["a"])]


def test_client_with_another_name_is_never_refused() -> None:
    assert steps([client("a", "1")], [client("b", "1")]) == [("keys.map", ["b"])]
    for models in ((), ("m",)):
        before, after = [client("a", "1", models)], [client("b", "1", models)]
        assert uses(before, after, after[0]) == ["m" if models else "any"]


def test_new_key_of_a_known_client_is_restricted_from_its_first_request() -> None:
    before, after = [client("a", "old")], [client("a", "new", ("m",))]
    assert uses(before, after, after[0]) == ["refused", "m"]
    assert uses(before, after, before[0])[-1] == "refused"


def test_new_client_is_known_once_it_is_restricted_and_a_revoked_one_is_out_first() -> None:
    """Between two maps it could use any model."""
    before, after = [client("a", "1"), client("gone", "2", ("m",))], [client("a", "1"), client("new", "3", ("n",))]
    assert steps(before, after) == [
        ("keys.map", ["a"]),
        ("grants.map", ["gone|m", "new|n"]),
        ("restricted.map", ["gone", "new"]),
        ("keys.map", ["a", "new"]),
        ("restricted.map", ["new"]),
        ("grants.map", ["new|n"]),
    ]
    assert uses(before, after, after[1]) == ["refused", "n"]
    assert uses(before, after, before[1]) == ["m", "refused"]


def test_client_is_not_refused_while_its_models_change() -> None:
    assert steps([client("a", "1", ("m",))], [client("a", "1")]) == [("restricted.map", []), ("grants.map", [])]
    assert steps([client("a", "1")], [client("a", "1", ("m",))]) == [("grants.map", ["a|m"]), ("restricted.map", ["a"])]
    before, after = [client("a", "1", ("m",))], [client("a", "1", ("n",))]
    assert uses(before, after, after[0]) == ["m", "mn", "n"]


@pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
def test_replaced_key_is_refused_once_the_new_one_is_taken(tmp_path: Path) -> None:
    with FakeServer() as fake:
        backends = [Backend("m", "M", "Q4", "model", (server(fake.port),))]
        before, after = [client("a", "an-old-key")], [client("a", "a-new-key")]
        with running(tmp_path, backends, before) as gateway:
            assert [gateway.ask("m", key).status_code for key in ("an-old-key", "a-new-key")] == [200, 401]
            old, new = rendered(backends, before), rendered(backends, after)
            for name, content in map_steps(["keys.map"], old, new):
                gateway.admin.replace_map(str(gateway.config / name), content)
            assert [gateway.ask("m", key).status_code for key in ("an-old-key", "a-new-key")] == [401, 200]


def process(revision: str, argv: tuple[str, ...] = ()) -> Process:
    return Process(1, 0, "m", argv, {"MAGI_LLAMA_REVISION": revision}, 0, 0.0, 0.0, 0)


def test_server_has_old_keys_until_it_is_started_with_the_file_as_it_is(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a\n")
    one = {"name": "m", "revision": "r2", "api_key_file": str(keys), "api_key_stamp": stamp_of(keys.stat())}
    assert with_old_keys([one], {}) == []
    assert with_old_keys([one], {"m": process("r2")}) == []
    assert with_old_keys([one], {"m": process("r1")}) == ["m"]
    # The file changed, and no run has restarted the servers yet.
    keys.write_text("a\nb\n")
    assert with_old_keys([one], {"m": process("r2")}) == ["m"]
    # It runs with keys that the next launch config has no more.
    without = {"name": "m", "revision": "r2"}
    assert with_old_keys([without], {"m": process("r1", ("llama-server", "--api-key-file", "/k"))}) == ["m"]
    assert with_old_keys([without], {"m": process("r1", ("llama-server",))}) == []


def entry(**marks: list[str]) -> dict[str, Any]:
    names = ("m-1", "m-2")
    servers = [
        {"name": name, "model_id": "m", "kind": "model", "listens": "0.0.0.0", "port": 8080 + number, "slots": 1}
        | {mark: True for mark, marked in marks.items() if name in marked}
        for number, name in enumerate(names)
    ]
    found = {"address": "192.0.2.1", "servers": servers}
    fleet.check_host(found, [])
    return found


def sent(keys: HostKeys, host: dict[str, Any]) -> tuple[str, int]:
    """The key that a gateway sends, and to how many servers."""
    [backend], _warnings = fleet.backends_of({"a": host}, keys_of({"a": keys}), [])
    return backend.key, len(backend.servers)


@pytest.mark.parametrize("both", [["old", "new"], ["new", "old"]])
def test_servers_get_a_key_that_all_of_them_take(both: list[str]) -> None:
    """In whichever order the file has the keys: servers that are not restarted yet know the old one only."""
    keys = HostKeys(["old"])
    for left, wanted in ((["m-1", "m-2"], "old"), (["m-2"], "old"), ([], both[0])):
        host = entry(old_keys=left)
        keys = next_keys(keys, both, host)
        assert sent(keys, host) == (wanted, 2)
        # What a gateway keeps in its file.
        keys = read_host_keys(written_keys({"a": keys}))["a"]
    for left in (["m-1", "m-2"], ["m-2"], []):
        host = entry(old_keys=left)
        keys = next_keys(keys, ["new"], host)
        refuse_replaced("a", keys, host)
        assert sent(keys, host) == ("new", 2)


def test_key_that_is_replaced_at_once_is_refused_before_a_server_is_drained() -> None:
    host = entry(old_keys=["m-1", "m-2"])
    keys = next_keys(HostKeys(["old"]), ["new"], host)
    # gateway.yml alone restarts nothing: they get the key that they take.
    refuse_replaced("a", keys, host)
    assert sent(keys, host) == ("old", 2)
    for one in (entry(old_keys=["m-1", "m-2"], draining=["m-1"]), entry(old_keys=["m-2"])):
        with pytest.raises(GatewayError, match=r"The API key file of a .* write the old key to it again"):
            refuse_replaced("a", next_keys(HostKeys(["old"]), ["new"], one), one)
    # One that is stopped for good.
    stopped = entry(old_keys=["m-2"], draining=["m-1"])
    refuse_replaced("a", next_keys(HostKeys(["old"]), ["new"], stopped), stopped)
    # One that sleeps is started with the file as it is then, and is drained only while it runs with the old one.
    sleeping = entry(old_keys=["m-1"], on_demand=["m-2"])
    refuse_replaced("a", next_keys(HostKeys(["old"]), ["new"], sleeping), sleeping)
    woken = entry(old_keys=["m-2"], on_demand=["m-2"], draining=["m-2"])
    with pytest.raises(GatewayError):
        refuse_replaced("a", next_keys(HostKeys(["old"]), ["new"], woken), woken)


def test_keys_of_an_earlier_version_are_read() -> None:
    assert read_host_keys({"a": ["k"]}) == {"a": HostKeys(["k"], [])}
