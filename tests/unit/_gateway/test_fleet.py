# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers behind a gateway: hosts, backends, and the names of models."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.documents import DocumentError
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Process
from ansible_collections.magi.llama.plugins.module_utils._gateway import fleet


def server(name: str, port: int = 8080, tier: str | None = "Q4", **more: Any) -> dict[str, Any]:
    argv = ["llama-server", "--port", str(port), "--parallel", "2"]
    return {"name": name, "model_id": name, "tier": tier, "host": "0.0.0.0", "port": port, "argv": argv, **more}


def entry(*servers: dict[str, Any], address: str = "192.0.2.1") -> dict[str, Any]:
    return fleet.host_entry({"servers": list(servers)}, address)


def backends(hosts: dict[str, dict[str, Any]], here: str = "gw", **keys: list[str]) -> list[fleet.Backend]:
    found, warnings = fleet.backends_of(hosts, lambda host, _server: keys.get(host, []), [here])
    assert warnings == []
    return found


def test_model_has_one_backend_over_all_hosts() -> None:
    found = backends({"a": entry(server("m")), "b": entry(server("m", 8081), address="192.0.2.2")})
    assert [backend.model_id for backend in found] == ["m"]
    assert found[0].servers == (
        fleet.Server("a_8080", "192.0.2.1", 8080, 2),
        fleet.Server("b_8081", "192.0.2.2", 8081, 2),
    )


@pytest.mark.parametrize(
    ("listens", "here", "address"),
    [
        ("127.0.0.1", "a", "127.0.0.1"),
        ("0.0.0.0", "a", "127.0.0.1"),
        ("0.0.0.0", "b", "192.0.2.1"),
        ("192.0.2.1", "b", "192.0.2.1"),
    ],
)
def test_server_is_reached_at_address_that_it_listens_on(listens: str, here: str, address: str) -> None:
    [found] = backends({"a": entry(server("m", host=listens))}, here)
    assert found.servers[0].address == address


def test_server_on_loopback_of_another_host_is_left_out_with_warning() -> None:
    found, warnings = fleet.backends_of({"a": entry(server("m", host="127.0.0.1"))}, lambda *_: [], ["b"])
    assert found == []
    assert warnings == [
        "a: m cannot be reached from here, as servers_host there is a loopback address: set it to the host's own "
        "address, and servers_api_key_file with it."
    ]


def test_servers_with_another_key_than_most_are_left_out() -> None:
    hosts = {host: entry(server("m")) for host in "abc"}
    [backend], warnings = fleet.backends_of(hosts, lambda host, _server: ["old" if host == "a" else "k"], [])
    assert (backend.key, [one.name for one in backend.servers]) == ("k", ["b_8080", "c_8080"])
    assert warnings == [
        "m: a_8080 do not take the API key that most of its servers take, and are left out: give all hosts a key in "
        "common in servers_api_key_file."
    ]


def test_key_that_all_servers_take_is_sent_while_keys_are_rotated() -> None:
    hosts = {host: entry(server("m")) for host in "ab"}

    def key(**keys: list[str]) -> str:
        [found] = backends(hosts, **keys)
        assert len(found.servers) == 2
        return found.key

    assert key(a=["old"], b=["old"]) == "old"
    assert key(a=["old", "new"], b=["old"]) == "old"
    assert key(a=["old", "new"], b=["old", "new"]) == "old"
    assert key(a=["new"], b=["old", "new"]) == "new"
    assert key(a=["new"], b=["new"]) == "new"


def test_servers_of_hosts_with_similar_names_have_different_names() -> None:
    [backend] = backends({host: entry(server("m")) for host in ("gpu_1", "gpu-1", "gpu 1")})
    assert len({one.name for one in backend.servers}) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", one.name) for one in backend.servers)


INJECTION = '::1]:8080\nglobal\n  lua-load "/tmp/x"\n#'


@pytest.mark.parametrize(
    "change",
    [
        {"listens": INJECTION},
        {"tier": "%[str(other),map_str(/var/lib/magi-llama-gateway/config/secrets.map)]"},
        {"tier": "m evil:"},
        {"model_id": "MAGI_clients"},
        {"name": "a b"},
        {"kind": "model\n"},
        {"display_name": "a\nb"},
        {"port": 0},
        {"slots": -5},
        {"draining": "disabled"},
        {"away_seconds": 0},
    ],
    ids=str,
)
def test_entry_that_would_be_more_than_a_value_is_refused(change: dict[str, Any]) -> None:
    good = entry(server("m"))
    fleet.check_host(good, ["key"])
    good["servers"][0].update(change)
    with pytest.raises(DocumentError):
        fleet.check_host(good, ["key"])


@pytest.mark.parametrize("key", ["a\nb", " a", "a\x7f", "é"])
def test_key_that_no_header_can_have_is_refused(key: str) -> None:
    with pytest.raises(DocumentError):
        fleet.check_host(entry(server("m")), ["good", key])


def test_draining_server_is_marked_with_its_time_away() -> None:
    record = {"servers": [server("m"), server("n", 8081), server("o", 8082)]}
    away = fleet.away_times(["m", "n", "unknown"], {"n": 2.5, "o": 9})
    found = fleet.host_entry(record, "192.0.2.1", away)
    fleet.check_host(found, [])
    marks = [{key: one[key] for key in ("draining", "away_seconds") if key in one} for one in found["servers"]]
    assert marks == [{"draining": True}, {"draining": True, "away_seconds": 3}, {}]


def test_model_is_away_until_its_first_server_is_back() -> None:
    def away(*draining: str) -> int:
        record = {"servers": [server("m-1", model_id="m"), server("m-2", 8081, model_id="m")]}
        [found] = backends({"a": fleet.host_entry(record, "", fleet.away_times(draining, {"m-1": 90, "m-2": 30}))})
        return found.away_seconds

    assert [away(), away("m-2"), away("m-1", "m-2")] == [0, 0, 30]


def test_time_away_that_is_no_number_is_refused() -> None:
    with pytest.raises(fleet.GatewayError, match="away_seconds must have a number"):
        fleet.away_times(["m"], {"m": "soon"})


def test_ready_servers_are_counted_by_model_and_host() -> None:
    pair = entry(server("m-1", model_id="m"), server("m-2", 8081, model_id="m"), server("n", 8082))
    up = {("m", "a_8080"), ("m", "a_8081"), ("m", "b_8080"), ("n", "other_8082")}
    assert fleet.ready_servers({"a": pair, "b": pair}, up) == {"m": {"a": 2, "b": 1}}


def test_server_that_may_sleep_is_not_ready() -> None:
    """Another host's only server would be swapped while nothing serves the model."""
    sleeping = {**entry(server("m")), "servers": [{**entry(server("m"))["servers"][0], "on_demand": True}]}
    assert fleet.ready_servers({"a": sleeping, "b": entry(server("m"))}, {("m", "a_8080"), ("m", "b_8080")}) == {
        "m": {"b": 1}
    }


def test_two_servers_on_one_port_are_refused() -> None:
    with pytest.raises(DocumentError):
        fleet.check_host(entry(server("m"), server("n")), [])


@pytest.mark.parametrize(
    ("words", "slots"),
    [(["--parallel", "3"], 3), ([], 4), (["--parallel", "-1"], 4), (["--parallel", "x"], 4)],
)
def test_slots_are_those_of_the_command_line(words: list[str], slots: int) -> None:
    assert fleet.slots_of(["llama-server", *words]) == slots


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("deepseek-r1-qwen3-8b-q4_k_m", "deepseek-r1-qwen3-8b"),
        ("qwen3-8b-ud-q4_k_xl", "qwen3-8b"),
        ("gpt-oss-20b-mxfp4", "gpt-oss-20b"),
        ("llama-bf16", "llama"),
        ("plain", "plain"),
        ("q4_0", "q4_0"),
    ],
)
def test_family_is_id_without_quantization(model: str, family: str) -> None:
    assert fleet.family_of(model) == family


@pytest.mark.parametrize(
    ("groups", "hosts"),
    [
        ({"all": ["a", "b"], "ungrouped": ["a", "b"]}, ["a", "b"]),
        ({"all": [], "ungrouped": []}, ["localhost"]),
        ({"all": ["a", "g"], "site1": ["a", "g"], "gateways": ["g"]}, ["a"]),
        ({"all": ["a", "g", "c", "r"], "gateways": ["g"], "console": ["c"], "redis": ["r"]}, ["a"]),
        ({"all": ["a", "m"], "monitoring": ["m"]}, ["a"]),
        ({"all": ["g"], "gateways": ["g"]}, ["g"]),
        ({"all": ["a", "g", "x"], "models": ["a", "g"], "gateways": ["g"]}, ["a", "g"]),
        ({"all": ["a"], "models": []}, []),
        ({"all": ["a", "c", "r"], "console": ["c"], "redis": ["r"]}, ["a"]),
    ],
)
def test_hosts_of_group_models_run_servers(groups: dict[str, list[str]], hosts: list[str]) -> None:
    assert fleet.model_hosts(groups) == hosts


def test_server_is_reached_where_its_process_listens_until_it_is_restarted() -> None:
    planned = {**server("m", 8090), "revision": "new"}
    argv = ("llama-server", "--host", "192.0.2.9", "--port", "8080", "--parallel", "4")
    process = Process(1, 1, "m", argv, {"MAGI_LLAMA_REVISION": "old"}, 0, 0.0, 0.0, 0)
    found = entry(dict(fleet.as_running(planned, process)))["servers"][0]
    assert (found["port"], found["listens"], found["slots"]) == (8080, "192.0.2.9", 4)
    assert fleet.as_running(planned, None) == planned
    current = dataclasses.replace(process, env={"MAGI_LLAMA_REVISION": "new"})
    assert fleet.as_running(planned, current) == planned


def test_servers_have_the_names_of_the_configuration() -> None:
    members = entry(server("m"), server("n", 8081))
    assert fleet.gateway_servers(members, "gpu1", ["n"]) == ["gpu1_8081"]
    with pytest.raises(fleet.GatewayError, match="gpu1: x, y are not among the servers"):
        fleet.gateway_servers(members, "gpu1", ["n", "x", "y"])


def test_servers_that_a_gateway_does_not_name_are_unserved() -> None:
    """A gateway that does not know a server does not report it as one that is not ready."""
    members = entry(server("m", host="0.0.0.0"), server("n", 8081))
    members["servers"][1]["listens"] = "127.0.0.1"
    answers = [
        {"item": ["begin", "gw1"], "changed": False},
        {"item": ["end", "gw1"], "how": "servers", "not_ready": [], "serving": ["gpu2_8080"]},
        {"item": ["end", "gw2"], "how": "missing"},
        {"item": ["end", "gpu1"], "how": "servers", "serving": ["gpu1_8080"]},
    ]
    # No gateway of another host reaches n.
    assert fleet.unserved_servers(answers, members, "gpu1", ["m", "n"]) == [
        {"gateway": "gw1", "server": "m"},
        {"gateway": "gpu1", "server": "n"},
    ]
    with pytest.raises(fleet.GatewayError, match="gpu1: x are not"):
        fleet.unserved_servers(answers, members, "gpu1", ["x"])
    assert fleet.serving_gateways(answers, members, "gpu1", ["m", "n", "x"]) == [{"gateway": "gpu1", "server": "m"}]


def test_stand_in_of_a_later_step_leaves_its_port_to_the_one_that_has_it() -> None:
    """With few free ports, stand-ins of different steps have one port: the host's entry is used all the same."""
    early, late = server("m-surge", 8085, model_id="m"), server("n-surge", 8085, model_id="n")
    others = [server("m"), server("n", 8081)]
    record = [*others, early, late]

    def names(running: set[str], draining: set[str]) -> list[str]:
        servers = fleet.one_per_port(record, running, draining)
        fleet.check_host(fleet.host_entry({"servers": servers}, "192.0.2.1"), [])
        return [str(one["name"]) for one in servers]

    assert names({"m", "n"}, {"m-surge", "n-surge"}) == ["m", "n", "m-surge"]
    assert names({"m", "n", "m-surge"}, {"n-surge"}) == ["m", "n", "m-surge"]
    assert names({"m", "n", "m-surge"}, {"m-surge", "n-surge"}) == ["m", "n", "m-surge"]
    assert names({"m", "n", "n-surge"}, {"m-surge"}) == ["m", "n", "n-surge"]
