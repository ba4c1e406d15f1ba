"""The plan: ports, memory, actions, and errors before any change."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.argv import flag_value
from ansible_collections.magi.llama.plugins.module_utils._core.errors import EstimateError
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Listener, Memory, Process
from ansible_collections.magi.llama.plugins.module_utils._core.text import format_bytes
from ansible_collections.magi.llama.plugins.module_utils._plan.gpu import Gpu
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, PlanError, Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.memory_limits import ram_reserve
from ansible_collections.magi.llama.plugins.module_utils._plan.plan import make_plan, plan_lines
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import ProfileError, validate
from ansible_collections.magi.llama.plugins.module_utils._services.table import find_manager

GIB = 1024**3
RUNTIME = {
    "path": "/usr/bin/llama-server",
    "identity": "abc123",
    "installed": True,
    "flags": {
        "ctx_size": {"spelling": "--ctx-size", "value": True},
        "parallel": {"spelling": "--parallel", "value": True},
        "metrics": {"spelling": "--metrics", "value": False},
        "embedding": {"spelling": "--embedding", "value": False, "aliases": ["embeddings"]},
        "mmproj": {"spelling": "--mmproj", "value": True},
        "tensor_split": {"spelling": "--tensor-split", "value": True},
        "device": {"spelling": "--device", "value": True},
        "threads": {"spelling": "--threads", "value": True},
        "threads_batch": {"spelling": "--threads-batch", "value": True},
        "n_gpu_layers": {"spelling": "--n-gpu-layers", "value": True},
    },
}
SHAPE: dict[str, Any] = {}


def model(model_id: str, tier: str = "Q4", kind: str = "model", **more: Any) -> dict[str, Any]:
    path = f"/models/{model_id}.gguf"
    return {
        "id": model_id,
        "display_name": model_id.title(),
        "kind": kind,
        "tier": tier,
        "architecture": "llama",
        "path": path,
        "files": [path],
        "mmproj": None,
        "fingerprint": {"size": 1, "mtime_ns": 2, "inode": 3},
        "memory": {"stub": True},
        **more,
    }


A, B, C = model("a", "Q2"), model("b", "Q3"), model("c", "Q4")
SETTINGS = Settings(state_dir="/state", service_manager="supervisor")


@pytest.fixture(autouse=True)
def one_gib_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server needs 1 GiB here: the estimate is tested elsewhere."""

    def estimate(shape: Any, settings: Any, *, gpus: int = 0, **_: Any) -> dict[str, Any]:
        vram = GIB if gpus else 0
        return {
            "total_bytes": GIB,
            "ram_bytes": GIB - vram,
            "vram_bytes": vram,
            "growth_bytes": 0,
            "gpu_fixed_bytes": 0,
            "slot_context": 4096,
        }

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.drafts.estimate", estimate)


def profile(*entries: Any, **more: Any) -> dict[str, Any]:
    return validate("test", "profiles/test.yml", {"enabled_models": list(entries), **more})


def host(**more: Any) -> Host:
    return Host(**{"memory": Memory(64 * GIB, 32 * GIB), **more})


def plan(
    models: list, chosen: dict, on: Host | None = None, settings: Settings = SETTINGS, **more: Any
) -> dict[str, Any]:
    registry = {"models": models, "rejected": more.pop("rejected", []), "companions": more.pop("companions", [])}
    runtime = more.pop("runtime", RUNTIME)
    return make_plan(registry, chosen, runtime, settings, on or host(), **more)


def ports(made: dict[str, Any]) -> dict[str, int]:
    return {server["name"]: server["port"] for server in made["servers"] if server["action"] != "stop"}


def actions(made: dict[str, Any]) -> dict[str, str]:
    return {server["name"]: server["action"] for server in made["servers"]}


def process(server: dict[str, Any], pid: int = 100, **changed: Any) -> Process:
    fields = {
        "pid": pid,
        "ppid": 1,
        "name": server["name"],
        "argv": tuple(server["argv"]),
        "env": dict(server["env"]),
        "uid": 0,
        "started_at": 0.0,
        "uptime_seconds": 1.0,
        "rss_bytes": 0,
    }
    return Process(**{**fields, **changed})


def deployed(made: dict[str, Any]) -> Host:
    """The host after a plan was carried out."""
    servers = [server for server in made["servers"] if server["action"] != "stop"]
    running = {server["name"]: process(server, 100 + index) for index, server in enumerate(servers)}
    return host(
        record=servers,
        running=running,
        remembered=made.get("ports", {}),
        listeners={
            s["port"]: Listener(s["port"], ("127.0.0.1",), running[s["name"]].pid, "llama-server") for s in servers
        },
    )


def foreign(*held: int) -> dict[int, Listener]:
    return {port: Listener(port, ("0.0.0.0",), 4242, "nginx: master") for port in held}


def test_new_host_starts_all_from_first_port() -> None:
    made = plan([A, B], profile({"model": "a", "instances": 2}, "b"))
    assert ports(made) == {"a": 8080, "a-2": 8081, "b": 8082}
    assert actions(made) == {"a": "start", "a-2": "start", "b": "start"}
    assert {server["reason"] for server in made["servers"]} == {"new"}


def test_command_line_of_server() -> None:
    chosen = profile("a", parameters={"ctx_size": 4096, "metrics": True})
    (server,) = plan([A], chosen, settings=Settings("/state", "systemd", api_key_file="/etc/keys"))["servers"]
    assert server["argv"] == [
        "/usr/bin/llama-server", "--model", "/models/a.gguf", "--alias", "a", "--host", "127.0.0.1", "--port", "8080",
        "--ctx-size", "4096", "--metrics", "--api-key-file", "/etc/keys",
    ]  # fmt: skip
    assert server["env"]["MAGI_LLAMA_SERVER"] == "a"
    assert server["env"]["MAGI_LLAMA_REVISION"] == server["revision"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (model("e", kind="embedding"), ["--embedding"]),
        (model("v", mmproj="/models/p.gguf"), ["--mmproj", "/models/p.gguf"]),
    ],
)
def test_kind_adds_its_flags(record: dict, words: list[str]) -> None:
    (server,) = plan([record], profile(record["id"]))["servers"]
    assert server["argv"][9:] == words


@pytest.mark.parametrize(
    ("parameters", "seen", "size", "words"),
    [
        ({}, "/models/p.gguf", 7, ["--mmproj", "/models/p.gguf"]),
        ({"mmproj": "/models/q.gguf"}, "/models/q.gguf", 9, ["--mmproj", "/models/q.gguf"]),
        ({"mmproj": "/other.gguf"}, "/other.gguf", 0, ["--mmproj", "/other.gguf"]),
        ({"mmproj": None}, None, 0, []),
    ],
)
def test_estimate_uses_the_command_line(
    monkeypatch: pytest.MonkeyPatch, parameters: dict, seen: str | None, size: int, words: list[str]
) -> None:
    calls = []

    def estimate(_shape: Any, settings: Any, *, companion_bytes: int, **_: Any) -> dict[str, Any]:
        calls.append((settings.get("mmproj"), settings.get("embedding"), companion_bytes))
        return {**dict.fromkeys(("total_bytes", "ram_bytes", "vram_bytes", "growth_bytes", "gpu_fixed_bytes"), 0)}

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.drafts.estimate", estimate)
    companions = [{"path": "/models/p.gguf", "size_bytes": 7}, {"path": "/models/q.gguf", "size_bytes": 9}]
    record = model("v", kind="embedding", mmproj="/models/p.gguf")
    (server,) = plan([record], profile("v", parameters=parameters), companions=companions)["servers"]
    assert server["argv"][9:] == ["--embedding", *words]
    assert calls == [(seen, True, size)]


def growing(monkeypatch: pytest.MonkeyPatch, growth: int) -> list[Any]:
    caches = []

    def estimate(_shape: Any, settings: Any, **_: Any) -> dict[str, Any]:
        caches.append(settings.get("cache_ram"))
        numbers = dict.fromkeys(("vram_bytes", "growth_bytes", "gpu_fixed_bytes"), 0)
        return {**numbers, "total_bytes": GIB, "ram_bytes": GIB, "expected_growth_bytes": growth}

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.drafts.estimate", estimate)
    return caches


def test_growth_beyond_ram_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = growing(monkeypatch, 2 * GIB)
    (warning,) = plan([A, B], profile("a", "b"), host(memory=Memory(5 * GIB, 5 * GIB)))["warnings"]
    assert "may take 4.0 GiB more than the 2.0 GiB that they need, and this host's RAM is 5.0 GiB: a 2.0 GiB" in warning
    assert "Set cache_ram" in warning
    assert plan([A, B], profile("a", "b"), host(memory=Memory(6 * GIB, 6 * GIB)))["warnings"] == []
    # This llama-server lacks the flag, so it has no such cache.
    assert set(caches) == {0}


def test_flag_that_the_estimate_does_not_count_is_a_warning() -> None:
    registry = {"models": [A], "rejected": [], "companions": []}
    runtime = {**RUNTIME, "flags": {**RUNTIME["flags"], "lazy_mode": RUNTIME["flags"]["ctx_size"]}}
    made = make_plan(registry, profile("a", parameters={"lazy_mode": "on"}), runtime, SETTINGS, host())
    (warning,) = made["warnings"]
    assert warning.startswith("a: lazy_mode is not in the estimate of its memory: ")


def test_plan_already_running_keeps_all() -> None:
    chosen = profile("a", "b")
    first = plan([A, B], chosen)
    second = plan([A, B], chosen, deployed(first))
    assert actions(second) == {"a": "keep", "b": "keep"}
    assert [server["generation"] for server in second["servers"]] == [1, 1]


def test_ports_of_other_servers_are_stable() -> None:
    first = plan([A, B, C], profile("a", "b", "c"))
    second = plan([A, B, C], profile("c", "b"), deployed(first))
    assert ports(second) == {"c": 8082, "b": 8081}
    assert actions(second) == {"c": "keep", "b": "keep", "a": "stop"}
    third = plan([A, B, C], profile({"model": "b", "instances": 2}, "c", "a"), deployed(second))
    # a was here before.
    assert ports(third) == {"b": 8081, "c": 8082, "b-2": 8083, "a": 8080}


def test_port_of_stopping_server_is_taken_last() -> None:
    first = plan([A, B], profile("a", "b"))
    narrow = Settings("/state", "supervisor", port_first=8080, port_last=8081)
    assert ports(plan([A, B, C], profile("c"), deployed(first))) == {"c": 8082}
    assert ports(plan([A, B, C], profile("b", "c"), deployed(first), narrow)) == {"b": 8081, "c": 8080}


def test_port_of_unrecorded_server_is_kept() -> None:
    first = plan([A, B], profile("a", "b"))
    lost = deployed(first)
    second = plan([A, B], profile("b", "a"), host(running=lost.running, listeners=lost.listeners))
    assert ports(second) == {"b": 8081, "a": 8080}
    assert actions(second) == {"a": "keep", "b": "keep"}


def test_port_held_by_foreign_process_is_skipped_for_new_server() -> None:
    assert ports(plan([A, B], profile("a", "b"), host(listeners=foreign(8080)))) == {"a": 8081, "b": 8082}


def test_port_of_server_held_by_foreign_process_is_an_error() -> None:
    first = plan([A], profile("a"))
    with pytest.raises(PlanError, match=r"Port 8080 of server a is held by pid 4242 \(nginx: master\)"):
        plan([A], profile("a"), host(record=first["servers"], listeners=foreign(8080)))
    moved = plan(
        [A],
        profile("a"),
        host(record=first["servers"], listeners=foreign(8080)),
        Settings("/state", "supervisor", move_on_conflict=True),
    )
    assert ports(moved) == {"a": 8081}


def test_port_taken_is_not_assigned() -> None:
    narrow = Settings("/state", "supervisor", port_first=8080, port_last=8081, move_on_conflict=True)
    first = plan([A, B], profile("a", "b"), settings=narrow)
    up = deployed(first)
    on = host(record=up.record, running={"a": up.running["a"]}, listeners={8080: up.listeners[8080], **foreign(8081)})
    with pytest.raises(PlanError, match="8080 to 8081 has room for 1; 8081 is held by pid 4242"):
        plan([A, B], profile("a", "b"), on, narrow)
    with pytest.raises(PlanError, match="8081 is held by pid 4242"):
        plan([A, C], profile("a", "c"), on, narrow)


def test_port_outside_range_moves() -> None:
    first = plan([A], profile("a"))
    second = plan([A], profile("a"), deployed(first), Settings("/state", "supervisor", port_first=9000, port_last=9001))
    assert ports(second) == {"a": 9000}
    assert actions(second) == {"a": "restart"}
    assert second["servers"][0]["reason"] == "moves from 8080: it is not in the port range"


def test_ports_are_the_same_after_a_switch_of_profiles_and_back() -> None:
    first = plan([A, B, C], profile("a", "b"))
    second = plan([A, B, C], profile("c"), deployed(first))
    assert second["ports"] == {"a": 8080, "b": 8081}
    # While they are away, their ports are given away last.
    other = plan([A, B, C, model("d")], profile("c", "d"), deployed(second))
    assert ports(other) == {"c": 8082, "d": 8083}
    third = plan([A, B, C, model("d")], profile("b", "a"), deployed(other))
    assert ports(third) == {"b": 8081, "a": 8080}
    assert third["ports"] == {"c": 8082, "d": 8083}


def test_remembered_ports_are_given_away_when_no_other_is_free() -> None:
    narrow = dataclasses.replace(SETTINGS, port_last=8081)
    first = plan([A, B, C], profile("a"), settings=narrow)
    second = plan([A, B, C], profile("b"), deployed(first), narrow)
    third = plan([A, B, C], profile("b", "c"), deployed(second), narrow)
    assert ports(third) == {"b": 8081, "c": 8080}
    # a has a port again as soon as there is one.
    assert third["ports"] == {"a": 8080}


def test_port_of_an_entry_is_that_of_its_server_and_of_no_other() -> None:
    chosen = profile({"model": "a", "port": 8090, "instances": 2}, "b")
    assert ports(plan([A, B], chosen)) == {"a": 8090, "a-2": 8091, "b": 8080}
    # One layout for all hosts: the port is not given away where the model is missing.
    narrow = dataclasses.replace(SETTINGS, port_first=8090, port_last=8092)
    assert ports(plan([B], chosen, settings=narrow, known_elsewhere=["a"])) == {"b": 8092}


def test_servers_ports_wins_over_the_profile_and_over_the_current_port() -> None:
    first = plan([A, B], profile("a", "b"))
    settings = dataclasses.replace(SETTINGS, ports={"b": 8080})
    second = plan([A, B], profile("a", {"model": "b", "port": 8085}), deployed(first), settings)
    assert ports(second) == {"a": 8082, "b": 8080}
    reasons = {server["name"]: server["reason"] for server in second["servers"]}
    assert reasons == {"a": "moves from 8080: it is set for b", "b": "moves from 8081: its port is set to 8080"}
    assert set(actions(plan([A, B], profile("a", "b"), deployed(second), settings)).values()) == {"keep"}


@pytest.mark.parametrize(
    "entries, pinned, held, message",
    [
        (["a"], {"a": 9000}, (), r"servers_ports.a: port 9000 of server a is not in the port range 8080 to 8099"),
        ([{"id": "*", "port": 8085}], {}, (), r"enabled_models\[0\].port: port 8085 of server b is set for a too"),
        ([{"model": "a", "port": 8085}], {}, (8085,), r"port 8085 of server a is held by pid 4242 \(nginx: master\)"),
    ],
)
def test_port_that_a_server_cannot_get_is_an_error(entries: list, pinned: dict, held: tuple, message: str) -> None:
    settings = dataclasses.replace(SETTINGS, ports=pinned, move_on_conflict=True)
    with pytest.raises(PlanError, match=message):
        plan([A, B], profile(*entries), host(listeners=foreign(*held)), settings)


def test_server_that_a_conflict_moved_goes_back_with_its_next_restart() -> None:
    moving = dataclasses.replace(SETTINGS, move_on_conflict=True)
    first = plan([A], profile("a"))
    on = host(record=first["servers"], listeners=foreign(8080))
    moved = plan([A], profile("a"), on, moving)
    assert ports(moved) == {"a": 8081}
    assert moved["servers"][0]["reason"] == "not running; moves from 8080: held by pid 4242 (nginx: master)"
    assert moved["ports"] == {"a": 8080}
    free = dataclasses.replace(deployed(moved), remembered=moved["ports"])
    kept = plan([A, B], profile("a", "b"), free, moving)
    assert (ports(kept), actions(kept)["a"]) == ({"a": 8081, "b": 8082}, "keep")
    back = plan([A], profile("a", parameters={"ctx_size": 512}), free, moving)
    assert ports(back) == {"a": 8080}
    assert back["servers"][0]["reason"] == "goes back from 8081 to 8080, which is free again; --ctx-size unset → 512"
    assert "ports" not in back
    busy = dataclasses.replace(free, listeners={**free.listeners, **foreign(8080)})
    stays = plan([A], profile("a", parameters={"ctx_size": 512}), busy, moving)
    assert (ports(stays), stays["ports"]) == ({"a": 8081}, {"a": 8080})


def test_ports_exhausted_error_names_range_and_holders() -> None:
    narrow = Settings("/state", "supervisor", port_first=8080, port_last=8081)
    with pytest.raises(PlanError, match=r"wants 2 servers, .* 8080 to 8081 has room for 1; 8081 is held by pid 4242"):
        plan([A, B], profile("a", "b"), host(listeners=foreign(8081)), narrow)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"argv": ("/usr/bin/llama-server", "--port", "8080")}, "--model unset → /models/a.gguf"),
        ({"env": {"MAGI_LLAMA_RUNTIME": "old"}}, "llama-server itself changed"),
        ({"env": {"MAGI_LLAMA_MODEL": "old"}}, "the model's file changed"),
        ({"env": {"MAGI_LLAMA_REVISION": "old"}}, "its launch config changed"),
    ],
)
def test_server_with_other_launch_is_restarted_with_reason(changed: dict, reason: str) -> None:
    chosen = profile("a")
    first = plan([A], chosen)
    (server,) = first["servers"]
    if "env" in changed:
        changed["env"] = {**server["env"], **changed["env"]}
    on = host(record=first["servers"], running={"a": process(server, **changed)})
    (again,) = plan([A], chosen, on)["servers"]
    assert again["action"] == "restart"
    assert reason in again["reason"]


FINGERPRINT = {"size": 1, "mtime_ns": 2, "inode": 3, "ctime_ns": 4}
SHARDS = {"shards": [[1, 2, 3, 4], [1, 2, 5, 4]]}


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        # Mounted again, under other inodes.
        ({}, {"inode": 9}, "keep"),
        (SHARDS, {"inode": 9, "shards": [[1, 2, 9, 4], [1, 2, 8, 4]]}, "keep"),
        # Another mode, owner or hard link.
        ({}, {"ctime_ns": 9}, "keep"),
        # Replaced, with the size and time of the file before.
        ({}, {"inode": 9, "ctime_ns": 9}, "restart"),
        ({}, {"mtime_ns": 9, "ctime_ns": 9}, "restart"),
        ({}, {"size": 9, "inode": 9, "ctime_ns": 9}, "restart"),
    ],
)
def test_replaced_file_restarts_and_remount_does_not(before: dict, after: dict, action: str) -> None:
    def of(**changes: Any) -> dict[str, Any]:
        return model("a", fingerprint={**FINGERPRINT, **changes})

    first = plan([of(**before)], profile("a"))
    (again,) = plan([of(**{**before, **after})], profile("a"), deployed(first))["servers"]
    assert again["action"] == action
    # The other one of the two does not replace it afterwards either.
    second = deployed({"servers": [again]})
    for changed in (
        {"ctime_ns": 77},
        {"inode": 77, "shards": [[1, 2, 77, 4], [1, 2, 76, 4]]} if before else {"inode": 77},
    ):
        (last,) = plan([of(**{**before, **after, **changed})], profile("a"), second)["servers"]
        assert last["action"] == "keep"


def test_launch_changed_raises_generation_and_restarts() -> None:
    first = plan([A], profile("a"))
    (again,) = plan([A], profile("a", parameters={"ctx_size": 1024}), deployed(first))["servers"]
    assert (again["action"], again["generation"]) == ("restart", 2)
    assert again["reason"] == "--ctx-size unset → 1024"


def test_dead_server_is_started_on_its_port() -> None:
    first = plan([A, B], profile("a", "b"))
    up = deployed(first)
    on = host(record=up.record, running={"b": up.running["b"]}, listeners={8081: up.listeners[8081]})
    again = plan([A, B], profile("a", "b"), on)
    assert actions(again) == {"a": "start", "b": "keep"}
    assert ports(again) == {"a": 8080, "b": 8081}
    assert again["servers"][0]["reason"] == "not running"


def test_model_unknown_is_an_error_with_nearest_ids() -> None:
    with pytest.raises(
        PlanError, match=r'profiles/test.yml.*enabled_models\[0\].*unknown model "alpha-q4".*"alpha-q4_k"'
    ):
        plan([model("alpha-q4_k"), B], profile("alpha-q4", "b"))


def test_model_of_the_manifest_is_no_typing_error() -> None:
    made = plan([model("alpha-q4_k"), B], profile("alpha-q4", "b"), known_from_manifest=["alpha-q4"])
    assert actions(made) == {"b": "start"}
    why = "the manifest lists it, so another host may have it"
    assert f'"alpha-q4" is missing on this host: {why}' in made["warnings"][0]
    assert made["lost"] == {"alpha-q4": "no such model on this host; enabled_models[0] names it"}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"known_elsewhere": ["gone"]}, "other hosts of this run have it"),
        (
            {"rejected": [{"path": "/models/Gone.gguf", "reason": "truncated"}]},
            "/models/Gone.gguf was rejected: truncated",
        ),
        ({}, "no similar model id on this host (valid are: b)"),
    ],
)
def test_model_missing_on_this_host_is_a_warning(more: dict, why: str) -> None:
    made = plan([B], profile("gone", "b"), **more)
    assert actions(made) == {"b": "start"}
    assert '"gone" is missing on this host' in made["warnings"][0]
    assert why in made["warnings"][0]


@pytest.mark.parametrize("entry", ["a", {"tier": "Q2"}, {"architecture": "llama"}, {"id": "?"}], ids=str)
@pytest.mark.parametrize(
    ("rejected", "why"),
    [
        ([], "/models/a.gguf is gone"),
        ([{"path": "/models/a.gguf", "reason": "truncated"}], "/models/a.gguf was rejected (truncated)"),
    ],
)
def test_running_server_of_lost_model_is_kept(entry: Any, rejected: list, why: str) -> None:
    chosen = profile(entry, "b")
    first = plan([A, B], chosen)
    second = plan([B], chosen, deployed(first), rejected=rejected)
    assert actions(second) == {"a": "keep", "b": "keep"}
    assert second["servers"][1]["reason"] == f"{why}: the running server is left alone"
    assert f"a: {why}. The running server is left alone" in second["warnings"][0]
    # Once the server is dead, there is nothing to keep.
    on = deployed(second)
    running = {"b": on.running["b"]}
    third = plan([B], chosen, dataclasses.replace(on, running=running), rejected=rejected)
    assert actions(third) == {"a": "stop", "b": "keep"}
    assert third["servers"][1]["reason"] == f"{why}, and it does not run"


def test_running_server_of_disabled_lost_model_is_stopped() -> None:
    first = plan([A, B], profile("a", "b"))
    second = plan([B], profile("b", {"tier": "Q8"}), deployed(first))
    assert actions(second) == {"a": "stop", "b": "keep"}
    assert second["servers"][1]["reason"] == 'profile "test" does not enable it'


def test_unsupervised_server_is_restarted() -> None:
    first = plan([A, B], profile("a", "b"))
    on = deployed(first)
    second = plan([A, B], profile("a", "b"), dataclasses.replace(on, unsupervised={"a": "unsupervised"}))
    assert actions(second) == {"a": "restart", "b": "keep"}
    assert second["servers"][0]["reason"] == "unsupervised"


@pytest.mark.parametrize("lost", ["service manager changed (supervisor → pods)", "unsupervised"])
def test_changed_manager_is_one_reason(lost: str) -> None:
    first = plan([A], profile("a"))
    server = first["servers"][0]
    running = {"a": process(server, env={**server["env"], "MAGI_LLAMA_REVISION": "old"})}
    second = plan([A], profile("a"), host(record=[server], running=running, unsupervised={"a": lost}))
    more = "; its launch config changed" if lost == "unsupervised" else ""
    assert second["servers"][0]["reason"] == f"{lost}{more}"


def test_server_with_llama_variables_in_environment_is_restarted() -> None:
    first = plan([A], profile("a"))
    server = first["servers"][0]
    overridden = process(server, stray=("AIP_MODE", "LLAMA_ARG_CTX_SIZE"))
    second = plan([A], profile("a"), host(record=[server], running={"a": overridden}))
    assert second["servers"][0]["reason"] == "its environment has AIP_MODE, LLAMA_ARG_CTX_SIZE"


def test_wrapper_calling_another_program_is_kept() -> None:
    first = plan([A], profile("a"))
    server = first["servers"][0]
    wrapped = process(server, argv=("/opt/llama.cpp/build/bin/llama-server", *server["argv"][1:]))
    second = plan([A], profile("a"), host(record=[server], running={"a": wrapped}))
    assert actions(second) == {"a": "keep"}
    moved = {**wrapped.env, "MAGI_LLAMA_REVISION": "of another path"}
    third = plan([A], profile("a"), host(record=[server], running={"a": dataclasses.replace(wrapped, env=moved)}))
    assert third["servers"][0]["reason"] == "program /opt/llama.cpp/build/bin/llama-server → /usr/bin/llama-server"


def test_wrapper_staying_parent_of_llama_server_is_kept() -> None:
    first = plan([A], profile("a"))
    server = first["servers"][0]
    shell = process(server, 100, argv=("/bin/sh", server["argv"][0], *server["argv"][1:]), children=(101,))
    held = {server["port"]: Listener(server["port"], ("127.0.0.1",), 101, "llama-server")}
    second = plan([A], profile("a"), host(record=[server], running={"a": shell}, listeners=held))
    assert actions(second) == {"a": "keep"}


def test_wrapper_adding_flags_is_kept() -> None:
    first = plan([A], profile("a"))
    server = first["servers"][0]
    for before, after in (((), ("--threads", "4")), (("--numa", "isolate"), ("--metrics",))):
        argv = (server["argv"][0], *before, *server["argv"][1:], *after)
        second = plan([A], profile("a"), host(record=[server], running={"a": process(server, argv=argv)}))
        assert actions(second) == {"a": "keep"}


def test_other_quantization_of_model_is_reported_missing() -> None:
    made = plan([model("alpha-q4_k_m"), B], profile("alpha-q8_0", "b"))
    assert actions(made) == {"b": "start"}
    assert (
        '"alpha-q8_0" is missing on this host: it has another quantization (did you mean "alpha-q4_k_m"?)'
        in made["warnings"][0]
    )


def test_error_lists_models_once() -> None:
    with pytest.raises(PlanError) as refused:
        plan([model("alpha-q4_k_m"), model("alpha-q5_k_m")], profile("alpha-q8_0"))
    text = str(refused.value)
    assert text.count("alpha-q4_k_m") == text.count("alpha-q5_k_m") == 1
    assert text.endswith("enables no model of this host.")
    with pytest.raises(PlanError, match=r'did you mean "alpha-q4_k_m".*which also has: b \(Q3\)\.$'):
        plan([model("alpha-q4_k_m"), B], profile("alpha-q8_0"))


def test_setting_without_estimate_names_profile_and_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(*_: Any, **__: Any) -> dict[str, Any]:
        raise EstimateError("ctx_size is '4k': it must be a whole number.")

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.drafts.estimate", estimate)
    with pytest.raises(PlanError, match=r"profiles/test\.yml.*server a: ctx_size is '4k'"):
        plan([A], profile("a"))


def test_stop_timeout_change_restarts_under_supervisor_only() -> None:
    for manager, action in (("supervisor", "restart"), ("systemd", "keep")):
        first, second = (
            Settings(
                "/state",
                manager,
                stop_timeout=seconds,
                manager_triggers=find_manager(manager).restart_triggers(seconds),
            )
            for seconds in (30, 3)
        )
        made = plan([A], profile("a"), settings=first)
        again = plan([A], profile("a"), deployed(made), second)
        assert actions(again) == {"a": action}


@pytest.mark.parametrize(("manager", "revision"), [("supervisor", "9f17e4c17f37"), ("systemd", "361887abddb6")])
def test_revision_is_the_same_as_in_earlier_versions(manager: str, revision: str) -> None:
    settings = Settings("/state", manager, manager_triggers=find_manager(manager).restart_triggers(30))
    assert plan([A], profile("a"), settings=settings)["servers"][0]["revision"] == revision


def test_profile_enabling_no_model_is_an_error_with_models() -> None:
    with pytest.raises(PlanError, match=r"enables no model of this host, which has: b \(Q3\)"):
        plan([B], profile({"tier": "Q8"}))
    with pytest.raises(PlanError, match="missing on this host"):
        plan([B], profile("gone"), known_elsewhere=["gone"])


def test_unknown_flag_names_profile_and_server() -> None:
    with pytest.raises(PlanError, match=r'profile "test" \(profiles/test.yml\), server a: .*ctx_sizes.*ctx_size'):
        plan([A], profile("a", parameters={"ctx_sizes": 1}))


def test_instance_name_never_equals_another_models_id() -> None:
    made = plan([A, model("a-2", "Q3")], profile({"model": "a", "instances": 2}, "a-2"))
    assert list(ports(made)) == ["a", "a-x2", "a-2"]


@pytest.mark.parametrize(
    ("chosen", "on", "words"),
    [
        (profile("a", "b", memory_budget="1GiB"), host(), "need 2.0 GiB, the profile's memory_budget is 1.0 GiB: a 1.0 GiB"),
        (profile("a", "b"), host(memory=Memory(GIB, GIB)), "this host's RAM that they can use (1.0 GiB in all; 1.0 GiB available; 128.0 MiB for the system) is 896.0 MiB"),
        (profile("a", "b", parameters={"n_gpu_layers": "all"}), host(gpus=[Gpu(0, "g", GIB, GIB, "nvidia")]), "need 2.0 GiB, the memory of GPU 0 (g) that they can use (1.0 GiB in all; 1.0 GiB free; 1.0 GiB to spare) is 0 B"),
    ],
)  # fmt: skip
def test_memory_exceeded_is_an_error_with_needs(chosen: dict, on: Host, words: str) -> None:
    with pytest.raises(PlanError) as error:
        plan([A, B], chosen, on)
    assert words in str(error.value)
    overcommit = Settings("/state", "supervisor", memory_overcommit=True)
    assert len(plan([A, B], chosen, on, overcommit)["servers"]) == 2


def test_plan_lines() -> None:
    first = plan([A, B], profile("a", "b"))
    lines = plan_lines(plan([A, B], profile("b"), deployed(first)))
    assert lines[0].split() == ["keep", "b", "port", "8081", "Q3", "1.0", "GiB", "runs", "as", "planned"]
    assert lines[1].endswith('profile "test" does not enable it')


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (GIB, "1.0 GiB"), (3 * 1024**4, "3.0 TiB")])
def test_format_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


# --- names that are not here, and bounds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "here"),
    [
        ("qwen3-32b-q4_k_m", "qwen3-8b-q4_k_m"),
        ("llama-3.1-8b", "llama-3.2-8b"),
        ("mistral-7b-v0.2", "mistral-7b-v0.3"),
        ("gemma-3-27b-it", "gemma-3-12b-it"),
    ],
)
def test_plan_model_of_another_size_or_version_is_a_warning(named: str, here: str) -> None:
    made = plan([model(here)], profile(named, here))
    assert ports(made) == {here: 8080}
    assert [f'model "{named}" is missing on this host' in text for text in made["warnings"]] == [True]


@pytest.mark.parametrize("named", ["qwen3-8b-q4_k_n", "qwem3-8b-q4_k_m", "qwen3-8bq4_k_m", "qwne3-8b-q4_k_m"])
def test_plan_typing_error_is_refused_with_the_right_name(named: str) -> None:
    with pytest.raises(PlanError, match=r'unknown model .* did you mean "qwen3-8b-q4_k_m"'):
        plan([model("qwen3-8b-q4_k_m")], profile(named))


def test_plan_names_of_instances_never_collide() -> None:
    models = [model(name) for name in ("m", "m-2", "m-x2", "m-3")]
    made = plan(models, profile({"model": "m", "instances": 3}, "m-2", "m-x2", "m-3"))
    names = [server["name"] for server in made["servers"]]
    assert sorted(names) == ["m", "m-2", "m-3", "m-x2", "m-x3", "m-xx2"]
    assert len(set(ports(made).values())) == 6


def test_plan_more_instances_than_ports_are_refused_at_once() -> None:
    with pytest.raises(
        PlanError, match=r"enabled_models\[0\].instances is 10+, the port range 8080 to 8099 has 20 ports"
    ):
        plan([A], profile({"model": "a", "instances": 10**12}))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"tensor_split": "1.2.3"}, "tensor_split is '1.2.3': it must be a list of numbers"),
        ({"tensor_split": "3;1"}, "tensor_split is '3;1'"),
        ({"device": "CUDA9"}, "device is CUDA9, and CUDA9 is not a GPU of this host, which has 0 (G)"),
    ],
)
def test_plan_gpu_parameter_that_is_wrong_is_an_error(parameters: dict, says: str) -> None:
    with pytest.raises(PlanError, match=re.escape(says)):
        plan([A], profile("a", parameters=parameters), host(gpus=[Gpu(0, "G", 80 * GIB, 80 * GIB, "nvidia")]))


BATCH_FLAGS = {
    "reranking": {"spelling": "--reranking", "value": False},
    "ubatch_size": {"spelling": "--ubatch-size", "value": True},
    "batch_size": {"spelling": "--batch-size", "value": True},
}


@pytest.mark.parametrize(
    ("kind", "parameters", "words"),
    [
        # A slot gets what the model was trained for, or its share of ctx_size.
        ("embedding", {}, ["--batch-size", "8192", "--ubatch-size", "8192"]),
        ("reranker", {"ctx_size": 4096, "parallel": 2}, ["--batch-size", "2048", "--ubatch-size", "2048"]),
        ("embedding", {"batch_size": 1024}, ["--batch-size", "1024", "--ubatch-size", "1024"]),
        ("embedding", {"ubatch_size": 256}, ["--ubatch-size", "256"]),
        ("model", {}, []),
    ],
)
def test_plan_embedding_server_takes_inputs_as_long_as_a_slot(
    monkeypatch: pytest.MonkeyPatch, kind: str, parameters: dict, words: list[str]
) -> None:
    monkeypatch.setitem(RUNTIME, "flags", {**RUNTIME["flags"], **BATCH_FLAGS})
    record = model("e", kind=kind, memory={"context_length": 8192, "causal": False})
    [server] = plan([record], profile("e", parameters=parameters))["servers"]
    pairs = list(zip(server["argv"], server["argv"][1:]))
    found = sorted(pair for pair in pairs if pair[0] in ("--batch-size", "--ubatch-size"))
    assert [word for pair in found for word in pair] == words


# --- cores -----------------------------------------------------------------------------------------------------------


def threads(made: dict[str, Any]) -> dict[str, str | None]:
    return {server["name"]: flag_value(server["argv"], "--threads") for server in made["servers"]}


def spins(made: dict[str, Any]) -> list[str]:
    return [server["name"] for server in made["servers"] if server["env"].get("GOMP_SPINCOUNT")]


AUTO = {"threads": "auto"}


def test_threads_auto_shares_the_cores() -> None:
    chosen = profile({"model": "a", "cpu_share": 2}, "b", "c", parameters=AUTO)
    made = plan([A, B, C], chosen, host(cores=8))
    assert (threads(made), spins(made)) == ({"a": "4", "b": "2", "c": "2"}, [])
    for server in made["servers"]:
        assert flag_value(server["argv"], "--threads-batch") == flag_value(server["argv"], "--threads")
    assert made["warnings"] == []
    assert "4 threads  new" in plan_lines(made)[0]


def test_fewer_busy_servers_have_more_threads_which_spin_less() -> None:
    chosen = profile("a", "b", "c", parameters=AUTO)
    one_busy = plan([A, B, C], chosen, host(cores=8), dataclasses.replace(SETTINGS, cpu_expected_busy=1))
    assert (threads(one_busy), spins(one_busy)) == ({"a": "8", "b": "8", "c": "8"}, ["a", "b", "c"])
    assert one_busy["warnings"] == []


@pytest.mark.parametrize(("openmp", "spinning"), [(True, ["a", "b"]), (None, ["a", "b"]), (False, [])])
def test_spin_is_bounded_in_builds_with_openmp(openmp: bool | None, spinning: list[str]) -> None:
    settings = dataclasses.replace(SETTINGS, cpu_expected_busy=1)
    made = plan(
        [A, B], profile("a", "b", parameters=AUTO), host(cores=8), settings, runtime={**RUNTIME, "openmp": openmp}
    )
    assert spins(made) == spinning


def test_own_threads_are_kept_and_warned_of() -> None:
    chosen = profile({"model": "a", "parameters": {"threads": 8}}, "b", parameters=AUTO)
    made = plan([A, B], chosen, host(cores=8))
    assert (threads(made), spins(made)) == ({"a": "8", "b": "1"}, [])
    (warning,) = made["warnings"]
    assert warning.startswith("9 threads compute at once on 8 cores") and "a (8)" in warning


def test_servers_without_threads_take_all_cores_and_are_warned_of() -> None:
    made = plan([A, B], profile("a", "b"), host(cores=8))
    assert (threads(made), spins(made)) == ({"a": None, "b": None}, [])
    (warning,) = made["warnings"]
    assert warning.startswith("16 threads compute at once on 8 cores") and "Set threads: auto" in warning
    alone = plan([A], profile("a"), host(cores=8))
    assert (spins(alone), alone["warnings"]) == ([], [])


def test_servers_on_gpus_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ansible_collections.magi.llama.plugins.module_utils._plan.drafts.computes_on_cpu",
        lambda _shape, settings, _gpus: settings.get("n_gpu_layers") == 0,
    )
    gpu = Gpu(0, "g", 64 * GIB, 64 * GIB, "nvidia")
    chosen = profile({"model": "a", "parameters": {"n_gpu_layers": 0}}, "b", parameters=AUTO)
    assert threads(plan([A, B], chosen, host(cores=8, gpus=[gpu]))) == {"a": "8", "b": None}


@pytest.mark.parametrize("share", [0, -1, True, "2", float("nan"), float("inf"), 101])
def test_cpu_share_has_bounds(share: Any) -> None:
    with pytest.raises(ProfileError, match=r"enabled_models\[0\].cpu_share must be a number from 0.01 to 100"):
        profile({"model": "a", "cpu_share": share})


# --- what GPUs have free ----------------------------------------------------------------------------------------------

BUSY = Gpu(0, "H100", 79 * GIB, GIB, "nvidia", "CUDA0", holders=("pid 4711 (python3) holds 76.0 GiB",))


def test_memory_held_by_other_processes_on_the_gpu_is_not_planned() -> None:
    with pytest.raises(PlanError) as error:
        plan([A], profile("a", parameters={"n_gpu_layers": "all"}), host(gpus=[BUSY]))
    assert "need 1.0 GiB, the memory of GPU CUDA0 (H100) that they can use (79.0 GiB in all; 1.0 GiB free; " in str(
        error.value
    )
    assert "pid 4711 (python3) holds 76.0 GiB" in str(error.value)
    assert "a 0 B RAM + 1.0 GiB GPU" in str(error.value)


def test_memory_that_our_own_server_holds_on_the_gpu_is_planned_again() -> None:
    chosen = profile("a", parameters={"n_gpu_layers": "all"})
    first = plan([A], chosen, host(gpus=[dataclasses.replace(BUSY, free_bytes=3 * GIB)]))
    held = dataclasses.replace(BUSY, free_bytes=GIB // 2, held_bytes=GIB)
    # Nothing is started: --fit's margin does not matter any more.
    assert actions(plan([A], chosen, dataclasses.replace(deployed(first), gpus=[held]))) == {"a": "keep"}


@pytest.mark.parametrize(
    ("device", "says"), [("CUDA1", "CUDA1 is not a GPU of this host, which has CUDA0 (H100)"), ("cuda", None)]
)
def test_device_is_one_that_llama_server_lists(device: str, says: str | None) -> None:
    roomy = dataclasses.replace(BUSY, free_bytes=9 * GIB)
    if says is None:
        assert plan([A], profile("a", parameters={"device": device}), host(gpus=[roomy]))
        return
    with pytest.raises(PlanError, match=re.escape(says)):
        plan([A], profile("a", parameters={"device": device}), host(gpus=[roomy]))


def renamed(old: dict[str, Any], new_id: str) -> dict[str, Any]:
    """The model after its file was renamed: another name and id, the same file."""
    return {**model(new_id, old["tier"]), "fingerprint": old["fingerprint"]}


def test_renamed_model_moves_its_server_and_port() -> None:
    first = plan([A, own(B)], profile({"id": "*"}))
    second = plan([A, renamed(own(B), "b-new")], profile({"id": "*"}), deployed(first))
    assert actions(second) == {"a": "keep", "b-new": "start", "b": "stop"}
    assert ports(second) == {"a": 8080, "b-new": 8081}
    assert {s["name"]: s["reason"] for s in second["servers"]}["b"] == "its model is called b-new now"
    assert "lost" not in second


def own(one: dict[str, Any]) -> dict[str, Any]:
    """A model with a file of its own."""
    return {**one, "fingerprint": {"size": 1, "mtime_ns": 2, "inode": 99}}


def test_lost_model_of_a_deployed_server_is_counted_and_fails_with_strict() -> None:
    first = plan([A, own(B)], profile({"id": "*"}))
    up = deployed(first)
    second = plan([A], profile({"id": "*"}), up)
    assert second["lost"] == {"b": "/models/b.gguf is gone"}
    with pytest.raises(PlanError, match=r"servers_strict is set.*b: /models/b.gguf is gone. Nothing was changed"):
        plan([A], profile({"id": "*"}), up, dataclasses.replace(SETTINGS, strict=True))
    assert "lost" not in plan([A], profile("a", "c"), up, known_elsewhere=["c"])
    assert plan([A], profile("a", "zzzz"), up)["lost"] == {
        "zzzz": "no such model on this host; enabled_models[1] names it"
    }


def test_prune_stops_a_running_server_whose_model_is_gone() -> None:
    first = plan([A, own(B)], profile({"id": "*"}))
    up = deployed(first)
    assert actions(plan([A], profile({"id": "*"}), up)) == {"a": "keep", "b": "keep"}
    pruned = plan([A], profile({"id": "*"}), up, dataclasses.replace(SETTINGS, prune=True, strict=True))
    assert actions(pruned) == {"a": "keep", "b": "stop"}
    assert pruned["servers"][1]["reason"] == "/models/b.gguf is gone"


def test_key_rotation_is_called_so() -> None:
    def with_keys(stamp: str, **more: Any) -> Settings:
        triggers = {"api_key_stamp": stamp, **more}
        return dataclasses.replace(SETTINGS, api_key_file="/etc/keys", restart_triggers=triggers)

    up = deployed(plan([A], profile("a"), settings=with_keys("1")))
    assert plan([A], profile("a"), up, with_keys("2"))["servers"][0]["reason"] == "its API keys changed"
    other = plan([A], profile("a"), up, with_keys("1", cpu_weight=50))
    assert other["servers"][0]["reason"] == "its launch config changed"


# --- RAM: a reserve, and what already runs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(64 * GIB, 2 * GIB), (16 * GIB, 16 * GIB // 20), (2 * GIB, 256 * 1024**2), (GIB // 2, GIB // 16)],
)
def test_ram_reserve_of_the_system(total: int, reserve: int) -> None:
    assert ram_reserve(total) == reserve


def test_ram_that_other_programs_hold_is_not_planned() -> None:
    with pytest.raises(PlanError) as error:
        plan([A, B], profile("a", "b"), host(memory=Memory(64 * GIB, GIB)))
    assert "need 2.0 GiB, this host's RAM that they can use (64.0 GiB in all; 1.0 GiB available; " in str(error.value)


def test_ram_that_our_servers_hold_is_planned_again() -> None:
    first = plan([A, B], profile("a", "b"))
    running = deployed(first)
    full = dataclasses.replace(running, memory=Memory(64 * GIB, GIB // 2))
    # Nothing is to be started.
    assert set(actions(plan([A, B], profile("a", "b"), full)).values()) == {"keep"}
    changed = profile("a", "b", parameters={"ctx_size": 8})
    with pytest.raises(PlanError, match="this host's RAM"):
        plan([A, B], changed, full)
    held = {name: dataclasses.replace(one, rss_bytes=GIB) for name, one in running.running.items()}
    assert plan([A, B], changed, dataclasses.replace(full, running=held))["servers"]


# --- mistakes of the plan itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (
            {"name": "a", "port": 8081, "action": "keep"},
            "Two servers of the plan have one name: a. Please report this.",
        ),
        # A stopped one that would be started and stopped in one run.
        ({"name": "a", "port": 8081, "action": "stop"}, "Two servers of the plan have one name: a."),
        ({"name": "b", "port": 8080, "action": "start"}, "Two servers of the plan have one port: 8080."),
        ({"name": "b", "port": 8080, "action": "stop"}, None),
        ({"name": "b", "port": 8081, "action": "start"}, None),
    ],
)
def test_two_servers_with_one_name_or_port_are_refused(
    monkeypatch: pytest.MonkeyPatch, second: dict[str, Any], says: str | None
) -> None:
    def stopped(planned: Any, *_others: Any) -> list[dict[str, Any]]:
        return [{**planned[0], **second}]

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.plan._stopped", stopped)
    if says is None:
        assert len(plan([A], profile("a"))["servers"]) == 2
    else:
        with pytest.raises(PlanError, match=re.escape(says)):
            plan([A], profile("a"))
