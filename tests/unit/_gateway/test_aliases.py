# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names that clients may ask a gateway for."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway import aliases
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError


def backends(*models: tuple[str, str | None], kind: str = "model") -> list[Backend]:
    return [Backend(model, model, tier, kind, ()) for model, tier in models]


M = backends(("m-q2_k", "Q2"), ("m-q8_0", "Q8"), ("m-bf16", "F16"), ("n-q8_0", "Q8"))


def test_names_have_best_model_first() -> None:
    names = aliases.names_of(M, {"best": ["n-q8_0", "m"], "gone": "x"}, families=True)
    assert names["m"] == ["m-bf16", "m-q8_0", "m-q2_k"]
    assert names["Q8"] == ["m-q8_0", "n-q8_0"]
    assert names["m-q2_k"] == ["m-q2_k"]
    assert names["best"] == ["n-q8_0", "m-bf16", "m-q8_0", "m-q2_k"]
    assert "gone" not in names
    assert "m" not in aliases.names_of(M, {}, families=False)


def test_embedding_server_is_in_no_tier_or_family() -> None:
    names = aliases.names_of(backends(("e-q8_0", "Q8"), kind="embedding"), {}, families=True)
    assert names == {"e-q8_0": ["e-q8_0"]}


def test_alias_with_the_id_of_a_model_is_refused() -> None:
    with pytest.raises(GatewayError, match=r"gateway_aliases\.m-q2_k is the id of a model"):
        aliases.names_of(M, {"m-q2_k": "m-q8_0"}, families=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"a b": "m"}, "gateway_aliases.a b: a name has 1 to 128 letters"),
        ({"a": []}, "gateway_aliases.a must be a model, a list of models, or weights"),
        ({"a": 5}, "gateway_aliases.a must be a model"),
        ({"a": "b", "b": "m"}, "gateway_aliases.a names the alias b"),
        ({"a": {"m": "x"}}, "gateway_aliases.a.m: a weight is a number above 0, not 'x'"),
        ({"a": {"m": -5}}, "not -5"),
        ({"a": {"m": float("inf")}}, "not inf"),
        ({"a": {"m": True}}, "not True"),
    ],
)
def test_invalid_alias_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(GatewayError) as error:
        aliases.check_aliases({"right": "m", **given})
    assert says in str(error.value)


def test_alias_of_a_model_that_no_server_has_is_a_warning() -> None:
    [warning] = aliases.missing_targets(M, {"best": ["m", "qwen"]}, families=True)
    assert warning.startswith("gateway_aliases.best: no server has qwen; there are F16, Q2, Q8, m, ")


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"m-q8_0": 95, "n-q8_0": 5}, [("m-q8_0", 95), ("n-q8_0", 5)]),
        ({"m-q8_0": 1, "n-q8_0": 2}, [("m-q8_0", 33), ("n-q8_0", 67)]),
        ({"m": 1, "n": 1}, [("m-bf16", 50), ("n-q8_0", 50)]),
        ({"m-q8_0": 1, "gone": 9}, [("m-q8_0", 100)]),
    ],
)
def test_shares_of_split_sum_up_to_hundred(weights: dict[str, int], shares: list[tuple[str, int]]) -> None:
    assert aliases.split_names(M, {"mix": weights}, families=True) == {"mix": shares}
