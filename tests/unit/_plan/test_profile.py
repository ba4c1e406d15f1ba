"""Profiles: errors and their texts, and the models that a profile selects."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import (
    ProfileError,
    nearest,
    parse_size,
    select,
    validate,
)

BUILT_IN = Path(__file__).parents[3] / "roles" / "servers" / "profiles"


def model(model_id: str, tier: str = "Q4", kind: str = "model", architecture: str = "llama") -> dict:
    return {"id": model_id, "tier": tier, "kind": kind, "architecture": architecture}


MODELS = [
    model("alpha-q2_k", "Q2"),
    model("alpha-q3_k_m", "Q3"),
    model("alpha-q4_k_m", "Q4", architecture="qwen3"),
    model("embed-q8_0", "Q8", kind="embedding", architecture="bert"),
]


def selected(data: dict) -> list[tuple[str, int]]:
    selection = select(validate("p", "p.yml", data), MODELS)
    return [(record["id"], instance) for record, instance, *_rest in selection.servers]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], ["p.yml", "mapping"]),
        (None, ["mapping", "empty"]),
        ({"enabled_model": ["a"]}, ['unknown key "enabled_model"', '"enabled_models"']),
        ({}, ["enabled_models"]),
        ({"enabled_models": []}, ["enabled_models"]),
        ({"enabled_models": "a"}, ["enabled_models"]),
        ({"enabled_models": [{"tear": "Q4"}]}, ["enabled_models[0].tear", '"tier"']),
        ({"enabled_models": [{"tier": "Q9"}]}, ["enabled_models[0].tier", '"Q9"', "Q8"]),
        ({"enabled_models": [{"kind": "mmproj"}]}, ["enabled_models[0].kind", "embedding"]),
        ({"enabled_models": [{"model": "a", "tier": "Q4"}]}, ["enabled_models[0]", "either"]),
        ({"enabled_models": [{"instances": 2}]}, ["enabled_models[0]", "either"]),
        ({"enabled_models": [{"model": "a", "instances": 0}]}, ["enabled_models[0].instances", "at least 1"]),
        ({"enabled_models": [{"model": "a", "instances": True}]}, ["enabled_models[0].instances"]),
        ({"enabled_models": ["a", "a"]}, ["enabled_models[1]", "enabled_models[0]", "instances"]),
        ({"enabled_models": ["a"], "parameters": ["x"]}, ["parameters", "mapping"]),
        ({"enabled_models": ["a"], "parameters": {"--ctx-size": 1}}, ["parameters.--ctx-size", '"ctx_size"']),
        ({"enabled_models": ["a"], "parameters": {"lora": [{"a": 1}]}}, ["parameters.lora", "scalar"]),
        ({"enabled_models": ["a"], "memory_budget": "8 apples"}, ["memory_budget", "8 apples", "8GiB"]),
        ({"enabled_models": ["a"], "memory_budget": -1}, ["memory_budget"]),
        ({"enabled_models": ["a"], "start": {"concurent": True}}, ["start.concurent", '"concurrent"']),
        ({"enabled_models": ["a"], "start": {"concurrent": "yes"}}, ["start.concurrent"]),
        ({"enabled_models": ["a"], "start": {"max_startup_time": 0}}, ["start.max_startup_time", "seconds"]),
    ],
)
def test_profile_invalid_error_has_name_key_and_fix(data: object, words: list[str]) -> None:
    with pytest.raises(ProfileError) as error:
        validate("p", "profiles/p.yml", data)
    for word in ['"p"', *words]:
        assert word in str(error.value)


def test_profile_defaults_are_filled_in() -> None:
    profile = validate("p", "p.yml", {"enabled_models": ["alpha-q2_k"], "memory_budget": "1GiB"})
    assert profile["start"] == {"concurrent": True, "max_startup_time": 120, "readiness_check_interval": 2}
    assert profile["memory_budget_bytes"] == 1024**3
    assert profile["parameters"] == {}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("8GiB", 8 * 1024**3),
        ("8G", 8 * 1024**3),
        ("1.5 GB", 1500000000),
        ("512m", 512 << 20),
    ],
)
def test_sizes_are_parsed(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["alpha-q4_k_m", "alpha-q2_k"], [("alpha-q4_k_m", 1), ("alpha-q2_k", 1)]),
        ([{"tier": "Q2", "instances": 2}], [("alpha-q2_k", 1), ("alpha-q2_k", 2)]),
        ([{"id": "alpha-*"}], [("alpha-q2_k", 1), ("alpha-q3_k_m", 1), ("alpha-q4_k_m", 1)]),
        ([{"architecture": "qwen3"}], [("alpha-q4_k_m", 1)]),
        ([{"kind": "embedding"}], [("embed-q8_0", 1)]),
        ([{"tier": "Q4", "architecture": "llama"}], []),
        # A model is selected once, by the first entry that matches it …
        ([{"tier": "Q3"}, {"id": "alpha-q[23]*"}], [("alpha-q3_k_m", 1), ("alpha-q2_k", 1)]),
        # … but an entry with its id takes precedence over an earlier selector.
        ([{"id": "alpha-q[23]*"}, {"model": "alpha-q2_k", "instances": 2}],
         [("alpha-q3_k_m", 1), ("alpha-q2_k", 1), ("alpha-q2_k", 2)]),
    ],
)  # fmt: skip
def test_entries_select_models(entries: list, expected: list[tuple[str, int]]) -> None:
    assert selected({"enabled_models": entries}) == expected


def test_model_id_missing_is_reported_with_key() -> None:
    selection = select(validate("p", "p.yml", {"enabled_models": ["nope", "alpha-q2_k"]}), MODELS)
    assert selection.missing == {"nope": "enabled_models[0]"}
    assert len(selection.servers) == 1


def test_entry_parameters_override_profile() -> None:
    data = {
        "parameters": {"ctx_size": 1, "parallel": 2},
        "enabled_models": [{"model": "alpha-q2_k", "parameters": {"ctx_size": 9}}],
    }
    selected, *_ = select(validate("p", "p.yml", data), MODELS).servers
    assert selected.parameters == {"ctx_size": 9, "parallel": 2}


def test_nearest_suggests_or_lists() -> None:
    assert nearest("prodction", ["production", "full"]) == 'did you mean "production"?'
    assert nearest("x", ["production", "full"]) == "valid are: full, production"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("development", [("alpha-q2_k", 1), ("alpha-q2_k", 2), ("alpha-q3_k_m", 1), ("alpha-q4_k_m", 1), ("embed-q8_0", 1)]),
        ("production", [("alpha-q4_k_m", 1), ("alpha-q3_k_m", 1)]),
        ("fast-only", [("alpha-q2_k", 1)]),
        ("full", [("alpha-q2_k", 1), ("alpha-q3_k_m", 1), ("alpha-q4_k_m", 1), ("embed-q8_0", 1)]),
    ],
)  # fmt: skip
def test_built_in_profile_selection(name: str, expected: list[tuple[str, int]]) -> None:
    assert selected(yaml.safe_load((BUILT_IN / f"{name}.yml").read_text())) == expected


def test_built_in_profiles_are_all_tested() -> None:
    assert {path.stem for path in BUILT_IN.glob("*.yml")} == {"development", "production", "fast-only", "full"}


@pytest.mark.parametrize("budget", ["9" * 400, 10**400, float("inf"), "1e400GiB", "9" * 31 + "T"])
def test_profile_budget_out_of_bounds_is_refused(budget: object) -> None:
    with pytest.raises(ProfileError, match="memory_budget must be a size such as 8GiB or 512M"):
        validate("p", "p.yml", {"enabled_models": ["a"], "memory_budget": budget})


@pytest.mark.parametrize("key", ["max_startup_time", "readiness_check_interval"])
@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 10**400, 86_401])
def test_profile_seconds_out_of_bounds_are_refused(key: str, seconds: object) -> None:
    with pytest.raises(ProfileError, match=f"start.{key} must be .* of seconds above 0, 86400 at most"):
        validate("p", "p.yml", {"enabled_models": ["a"], "start": {key: seconds}})


def test_value_with_a_comma_in_braces_is_to_be_quoted() -> None:
    data = yaml.safe_load("enabled_models: [{model: a, parameters: {tensor_split: 3,1}}]")
    with pytest.raises(
        ProfileError, match=r'enabled_models\[0\].parameters.1: .*quote the value .*tensor_split: "3,1"'
    ):
        validate("p", "p.yml", data)
