# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy's configuration as text, and the way from one to the next."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.aliases import names_of, split_names
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.config import files_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.files import compare, merged
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, Server
from ansible_collections.magi.llama.plugins.module_utils._gateway.limits import Limits, limits_of
from ansible_collections.magi.llama.plugins.module_utils._gateway.settings import Route, Settings
from ansible_collections.magi.llama.plugins.module_utils._gateway.unknown import unknown_model_text
from support.fake_server import FakeServer
from support.running_gateway import running, server

HAPROXY = "/usr/sbin/haproxy"
A = Server("a_8080", "192.0.2.1", 8080, 2)
B = Server("b_8080", "2001:db8::2", 8080, 4)
# Characters with a meaning in HAProxy's configuration, in a name that a model's file decides, and in a key.
ODD = """it's "100 %" ${HOME} #1 \\ {x}"""


def files(servers: tuple[Server, ...] = (A, B), clients: tuple[Client, ...] = (), **settings: Any) -> dict[str, str]:
    backends = [
        Backend("m-q4_k_m", ODD, "Q4", "model", servers, key="k'%\"${HOME}k"),
        Backend("m-q2_k", "M", "Q2", "model", (A,)),
    ]
    chosen = Settings(**settings)
    names, splits = (function(backends, chosen.aliases, chosen.families) for function in (names_of, split_names))
    limits = limits_of(Limits.common(chosen), chosen.models, names, backends)
    return files_of(chosen, Route(backends, names, splits, clients, limits))


@pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"clients": (Client("alice", "0" * 64, ("m-q2_k",), 60, -1),)},
        {"clients": (Client("alice", "0" * 64, tokens_per_minute=9),)},
        {"aliases": {"mix": {"m-q4_k_m": 95, "m-q2_k": 5}, "best": ["m"]}},
        {"host": "::1", "metrics_host": "::1", "families": False},
        {"servers": ()},
        {"stickiness": "user"},
        {"stickiness": "conversation"},
        {"stickiness": "header:X-Session-Id"},
        {"models": {"Q4": {"max_queue": 3, "queue_timeout": 5, "answer_timeout": 7}}},
        {"servers": (A, replace(B, is_draining=True, away_seconds=9))},
        {"servers": (A, replace(B, is_on_demand=True))},
    ],
)
def test_haproxy_accepts_configuration(given: dict[str, Any], tmp_path: Path) -> None:
    for name, text in files(**given).items():
        (tmp_path / name).write_text(text)
    environment = {"MAGI_GATEWAY": str(tmp_path), "MAGI_GATEWAY_RUN": str(tmp_path)}
    command = [HAPROXY, "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_draining_server_is_disabled_and_time_away_is_in_map() -> None:
    drained = files((replace(A, is_draining=True, away_seconds=9), replace(B, is_draining=True)))
    lines = [line for line in drained["haproxy.cfg"].splitlines() if line.startswith("  server ")]
    assert [line.endswith(" disabled") for line in lines] == [True, True, False]
    assert drained["away.map"] == "m-q4_k_m 9\n"
    assert files()["away.map"] == ""


def test_text_of_models_is_no_configuration() -> None:
    line = next(line for line in files()["haproxy.cfg"].splitlines() if "100 %" in line)
    assert "it'\\''s" in line
    assert "100 %%" in line


def test_equal_input_gives_equal_files() -> None:
    assert files() == files()


def test_unknown_model_is_answered_with_known_names() -> None:
    text = unknown_model_text(["m", "100%"])
    assert "There are: m, 100%%." in text
    assert text.count("%[var(txn.model),bytes(0,200),json(utf8s)]") == 1
    many = [f"model-{number:04}" for number in range(400)]
    assert "model-0164, model-0165 and 234 more." in unknown_model_text(many)


@pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
def test_nearest_name_is_suggested(tmp_path: Path) -> None:
    ids = ("tiny-llama-q8_0", "tiny-llama-q4_0", "qwen3-8b-q4_k_m", "bge-m3-q8_0")
    with FakeServer(ids[0]) as fake:
        others = [Backend(name, name, None, "model", ()) for name in ids[1:]]
        backends = [Backend(ids[0], "M", "Q8", "model", (server(fake.port),)), *others]
        with running(tmp_path, backends, aliases={"chat": "qwen3-8b"}) as gateway:
            for asked, meant in (
                ("tiny-lama", "tiny-llama"),
                ("Tiny-Llama-Q4-0", "tiny-llama-q4_0"),
                ("qwen3", "qwen3-8b"),
                ("qwen-3-8b-q4_k_m", "qwen3-8b-q4_k_m"),
                ("chta", "chat"),
                ("bge", "bge-m3"),
            ):
                found = gateway.ask(asked)
                assert found.status_code == 404
                message = found.json()["error"]["message"]
                assert message.startswith(f"The model {asked} does not exist. Did you mean {meant}? There are: Q8, bge")
            for asked in ("gpt-5", "x", "%", '"@', "a" * 100_000):
                found = gateway.ask(asked).json()["error"]
                assert found["code"] == "model_not_found"
                assert "Did you mean" not in found["message"]


def without(name: str) -> dict[str, str]:
    return {**files(), name: ""}


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        ({}, files(), "start"),
        (files(), files(), "nothing"),
        (without("secrets.map"), files(), "maps"),
        (files((A,)), files((A, B)), "servers"),
        (files(), files((A, replace(B, is_draining=True))), "servers"),
        (files(), files((replace(A, is_draining=True, away_seconds=9), replace(B, is_draining=True))), "servers"),
        (files(), files(max_queue=1), "reload"),
        (without("unknown_model.json"), files(), "reload"),
        # A name that comes, goes, or means another model: it is in the answers to unknown names.
        (files(), files(aliases={"chat": "m-q2_k"}), "reload"),
        (files(aliases={"chat": "m-q2_k"}), files(), "reload"),
        (files(aliases={"chat": "m-q2_k"}), files(aliases={"talk": "m-q2_k"}), "reload"),
        (files(), files(families=False), "reload"),
        # A name that means another model than before is in the map alone.
        (files(aliases={"chat": "m-q2_k"}), files(aliases={"chat": "m-q4_k_m"}), "maps"),
    ],
)
def test_change_is_applied_with_least_effect(before: dict[str, str], after: dict[str, str], how: str) -> None:
    assert compare(before, after).how == how


def test_diff_has_no_keys() -> None:
    text = str(compare({}, files(clients=(Client("alice", "abcdef0123456789" * 4),))).diff)
    assert "k'%" not in text
    assert "k'\\\\''%%" not in text
    assert "ABCDEF0123456789" not in text


def test_run_keeps_hosts_that_it_does_not_cover() -> None:
    known, found = {"a": {"n": 1}, "b": {"n": 1}, "old": {"n": 1}, "down": {"n": 1}}, {"b": {"n": 2}, "down": None}
    assert merged(known, found, ["a", "b", "down"]) == {"a": {"n": 1}, "b": {"n": 2}}


def test_server_on_demand_is_not_asked_by_checks() -> None:
    """The gateway answers its check, with the model that the check looks for."""
    lazy = replace(B, is_on_demand=True)
    config = files(servers=(A, lazy), metrics_host="0.0.0.0", metrics_port=9071)["haproxy.cfg"]
    lines = [line.split() for line in config.splitlines() if line.startswith("  server b_8080 ")]
    [line] = lines
    assert " ".join(line[3:9]) == "maxconn 4 addr 127.0.0.1 port 9071"
    assert """string '{"data":[{"id":"m-q4_k_m"}]}' if { path /v1/models }""" in config
    assert """http-check expect string '"id":"m-q4_k_m"'""" in config
    without = files(servers=(A, B))["haproxy.cfg"]
    assert " addr " not in without
    assert "if { path /v1/models }" not in without
