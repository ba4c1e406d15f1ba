"""What is wrong in several entries of a profile is reported in one error, for all servers."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Listener, Memory
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, PlanError, Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.memory_flags import Flags
from ansible_collections.magi.llama.plugins.module_utils._plan.plan import make_plan
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import ProfileError, validate

GIB = 1024**3
FLAGS: dict[str, Any] = {
    "ctx_size": {"spelling": "--ctx-size", "value": True},
    "parallel": {"spelling": "--parallel", "value": True},
    "cache_type_k": {"spelling": "--cache-type-k", "value": True, "choices": ["f16", "q8_0"]},
    "jinja": {"spelling": "--jinja", "value": False, "negation": "--no-jinja"},
    "tools": {"spelling": "--tools", "value": True},
    "sse_ping_interval": {"spelling": "--sse-ping-interval", "value": True},
}
RUNTIME = {"path": "/usr/bin/llama-server", "identity": "abc123", "installed": True, "flags": FLAGS}
SHAPE = {
    "file_bytes": GIB,
    "context_length": 4096,
    "causal": True,
    "layers": [{"bytes": GIB, "k": 512, "v": 512}],
}


def model(model_id: str) -> dict[str, Any]:
    path = f"/models/{model_id}.gguf"
    return {
        "id": model_id,
        "display_name": model_id.title(),
        "kind": "model",
        "tier": "Q4",
        "architecture": "llama",
        "path": path,
        "files": [path],
        "mmproj": None,
        "fingerprint": {"size": 1, "mtime_ns": 2, "inode": 3},
        "memory": SHAPE,
    }


MODELS = [model(name) for name in ("alpha-q4_k_m", "beta-q4_k_m", "gamma-q4_k_m")]
SETTINGS = Settings(state_dir="/state", service_manager="supervisor")


@pytest.fixture(autouse=True)
def one_gib_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return 1 GiB for every server; a context size that is not a number has no estimate."""

    def estimate(shape: Any, settings: Any, **_: Any) -> dict[str, Any]:
        Flags(settings).number("ctx_size", default=0)
        sizes = {"total_bytes": GIB, "ram_bytes": GIB, "vram_bytes": 0, "growth_bytes": 0, "gpu_fixed_bytes": 0}
        return {**sizes, "slot_context": 4096}

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.drafts.estimate", estimate)


def refusal(*entries: Any, on: Host | None = None, settings: Settings = SETTINGS, **more: Any) -> str:
    """Return the error that the plan of a profile with these entries ends with."""
    runtime = more.pop("runtime", RUNTIME)
    profile = validate("test", "profiles/test.yml", {"enabled_models": list(entries), **more})
    registry: dict[str, Any] = {"models": MODELS, "rejected": [], "companions": []}
    with pytest.raises(PlanError) as refused:
        make_plan(registry, profile, runtime, settings, on or Host(memory=Memory(64 * GIB, 32 * GIB)))
    return str(refused.value)


def entry(name: str, **parameters: Any) -> dict[str, Any]:
    return {"model": f"{name}-q4_k_m", "parameters": parameters}


def test_wrong_flags_of_several_entries_and_of_the_profile_are_named_at_once() -> None:
    text = refusal(
        entry("alpha", ctx_sizes=4096),
        entry("beta", cache_type_k="q9"),
        entry("gamma", jinja="maybe"),
        parameters={"paralel": 2},
    )
    assert text == (
        'profile "test" (profiles/test.yml), servers alpha-q4_k_m, beta-q4_k_m, gamma-q4_k_m: this llama-server has no '
        'flag "paralel"; nearest: parallel. Server alpha-q4_k_m: this llama-server has no flag "ctx_sizes"; nearest: '
        'ctx_size. Server beta-q4_k_m: "cache_type_k" takes one of f16, q8_0, not q9. Server gamma-q4_k_m: "jinja" '
        "takes true or false, not 'maybe'."
    )


def test_wrong_flags_of_every_kind_in_one_entry_are_named_at_once() -> None:
    text = refusal(entry("alpha", ctx_size="4k", cache_type_k="q9", port=1, sse_ping_interval=60, tools="all", nope=1))
    keys = (
        '"cache_type_k" takes',
        "ctx_size is '4k'",
        '"port" cannot',
        "sse_ping_interval is 60",
        '"tools": gives',
        '"nope"',
    )
    assert [key for key in keys if text.count(key) != 1] == []
    assert text.count("profiles/test.yml") == 1


def test_wrong_flags_without_llama_server_are_named_at_once() -> None:
    """A host where nothing is installed yet."""
    text = refusal(entry("alpha", port=1), entry("beta", grammar="a\0b"), runtime={**RUNTIME, "flags": {}})
    assert '"port" cannot be set' in text and '"grammar" contains a NUL byte' in text


def test_many_servers_with_one_error_are_counted() -> None:
    text = refusal({"id": "*", "instances": 5, "parameters": {"paralel": 2}})
    assert "servers alpha-q4_k_m, alpha-q4_k_m-2, alpha-q4_k_m-3, alpha-q4_k_m-4, alpha-q4_k_m-5 and 10 more: " in text
    assert text.count("paralel") == 1


def test_errors_of_other_stages_are_reported_with_those_of_flags() -> None:
    """Misspelled models, ports and flags in one error."""
    text = refusal(
        {"model": "alpha-q4_k_n", "port": 8081},
        {"model": "betta-q4_k_m"},
        {"model": "beta-q4_k_m", "port": 9000},
        {"model": "gamma-q4_k_m", "port": 70, "parameters": {"ctx_sizes": 1}},
    )
    for word in (
        '"alpha-q4_k_n"',
        '"betta-q4_k_m"',
        "enabled_models[2].port: port 9000",
        "[3].port: port 70",
        '"ctx_sizes"',
    ):
        assert word in text


def test_conflicts_of_all_ports_are_reported_at_once() -> None:
    record = [
        {"name": f"{name}-q4_k_m", "model_id": f"{name}-q4_k_m", "port": port, "argv": []}
        for name, port in (("alpha", 8080), ("beta", 8081))
    ]
    listeners = {port: Listener(port, ("127.0.0.1",), port, "nginx") for port in (8080, 8081)}
    text = refusal(
        "alpha-q4_k_m", "beta-q4_k_m", on=Host(Memory(64 * GIB, 32 * GIB), record=record, listeners=listeners)
    )
    assert (
        "Port 8080 of server alpha-q4_k_m is held by" in text and "Port 8081 of server beta-q4_k_m is held by" in text
    )


def test_servers_without_a_gpu_are_named_at_once() -> None:
    settings = Settings(state_dir="/state", service_manager="supervisor", require_gpu="true")
    text = refusal("alpha-q4_k_m", "beta-q4_k_m", settings=settings)
    assert "servers alpha-q4_k_m, beta-q4_k_m: servers_require_gpu is true" in text


def test_more_instances_than_ports_of_all_entries_are_named_at_once() -> None:
    text = refusal({"model": "alpha-q4_k_m", "instances": 30}, {"model": "beta-q4_k_m", "instances": 40})
    assert "enabled_models[0].instances is 30" in text and "enabled_models[1].instances is 40" in text


def test_wrong_keys_and_values_of_a_profile_are_named_at_once() -> None:
    data = {
        "enabled_model": [],
        "enabled_models": [
            {"tear": "Q4"},
            {"tier": "Q9", "instances": 0},
            {"model": "a", "port": "x", "cpu_share": -1, "parameters": {"--ctx-size": 1, "Parallel": 2}},
            "b",
            "b",
        ],
        "parameters": {"lora": [{}]},
        "memory_budget": "8 apples",
        "start": {"concurrent": "yes", "max_startup_time": 0},
    }
    with pytest.raises(ProfileError) as refused:
        validate("p", "profiles/p.yml", data)
    text = str(refused.value)
    for word in (
        'unknown key "enabled_model"',
        'Unknown key "enabled_models[0].tear"',
        "enabled_models[1].tier: unknown tier",
        "enabled_models[1].instances must be",
        "enabled_models[2].port must be",
        "enabled_models[2].cpu_share must be",
        "enabled_models[2].parameters.--ctx-size",
        "enabled_models[2].parameters.Parallel",
        'enabled_models[4] names "b" again',
        "parameters.lora",
        "memory_budget must be",
        "start.concurrent must be",
        "start.max_startup_time must be",
    ):
        assert text.count(word) == 1, word
    assert text.startswith('profile "p" (profiles/p.yml): ') and text.count("profiles/p.yml") == 1
