# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers behind a gateway: hosts, backends, and the names of models."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import fleet
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import GatewayError


def server(model: str, port: int = 8080, tier: str | None = "Q4", **more: Any) -> dict[str, Any]:
    argv = ["llama-server", "--port", str(port), "--parallel", "2"]
    return {"name": model, "model_id": model, "tier": tier, "host": "0.0.0.0", "port": port, "argv": argv, **more}


def entry(*servers: dict[str, Any], address: str = "192.0.2.1") -> dict[str, Any]:
    return fleet.host_entry({"servers": list(servers)}, address)


def backends(hosts: dict[str, dict[str, Any]], here: str = "gw", **keys: str) -> list[fleet.Backend]:
    found, warnings = fleet.backends_of(hosts, keys, [here])
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
    found, warnings = fleet.backends_of({"a": entry(server("m", host="127.0.0.1"))}, {}, ["b"])
    assert found == []
    assert warnings == [
        "a: m cannot be reached from here, as servers_host there is a loopback address: set it to the host's own "
        "address, and servers_api_key_file with it."
    ]


def test_servers_of_a_model_with_two_keys_are_refused() -> None:
    hosts = {"a": entry(server("m")), "b": entry(server("m"))}
    assert backends(hosts, a="k", b="k")[0].key == "k"
    with pytest.raises(GatewayError, match="The servers of m on a and b have different API keys"):
        fleet.backends_of(hosts, {"a": "k"}, [])


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


def test_names_have_best_model_first() -> None:
    hosts = {
        "a": entry(
            server("m-q2_k", 1, "Q2"), server("m-q8_0", 2, "Q8"), server("m-bf16", 3, "F16"), server("n-q8_0", 4, "Q8")
        )
    }
    names = fleet.names_of(backends(hosts), {"best": ["n-q8_0", "m"], "gone": "x"}, families=True)
    assert names["m"] == ["m-bf16", "m-q8_0", "m-q2_k"]
    assert names["Q8"] == ["m-q8_0", "n-q8_0"]
    assert names["m-q2_k"] == ["m-q2_k"]
    assert names["best"] == ["n-q8_0", "m-bf16", "m-q8_0", "m-q2_k"]
    assert "gone" not in names
    assert "m" not in fleet.names_of(backends(hosts), {}, families=False)


def test_embedding_server_is_in_no_tier_or_family() -> None:
    names = fleet.names_of(backends({"a": entry(server("e-q8_0", 1, "Q8", kind="embedding"))}), {}, families=True)
    assert names == {"e-q8_0": ["e-q8_0"]}


def test_alias_with_the_id_of_a_model_is_refused() -> None:
    with pytest.raises(GatewayError, match=r"gateway_aliases\.m is the id of a model"):
        fleet.names_of(backends({"a": entry(server("m"))}), {"m": "m"}, families=True)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"m": 95, "n": 5}, [("m", 95), ("n", 5)]),
        ({"m": 1, "n": 2}, [("m", 33), ("n", 67)]),
        ({"m": 1, "gone": 9}, [("m", 100)]),
    ],
)
def test_shares_of_split_sum_up_to_hundred(weights: dict[str, int], shares: list[tuple[str, int]]) -> None:
    found = backends({"a": entry(server("m"), server("n", 8081))})
    assert fleet.split_names(found, {"mix": weights}) == {"mix": shares}


@pytest.mark.parametrize(
    ("groups", "hosts"),
    [
        ({"all": ["a", "b"], "ungrouped": ["a", "b"]}, ["a", "b"]),
        ({"all": [], "ungrouped": []}, ["localhost"]),
        ({"all": ["a", "g"], "gpu": ["a"], "gateways": ["g"]}, ["a"]),
        ({"all": ["a", "g"], "ungrouped": ["a"], "gateways": ["g"]}, ["a"]),
        ({"all": ["g"], "models": ["g"], "gateways": ["g"]}, ["g"]),
    ],
)
def test_hosts_that_are_only_gateways_run_no_servers(groups: dict[str, list[str]], hosts: list[str]) -> None:
    assert fleet.model_hosts(groups) == hosts
