# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the console keeps of a server over several runs: its speed, its log, and RAM and VRAM apart."""

from __future__ import annotations

import json
from typing import Any

from magi_llama_console.fleet.facts import MAX_RATES, Fleet, Server, from_plain, host_to_plain, to_plain
from magi_llama_console.fleet.view import fold_document


def document(kind: str = "status", **of_server: Any) -> dict[str, Any]:
    server = {"name": "x", "model_id": "m", "port": 8080, "state": "ready", "is_ready": True, **of_server}
    return {"kind": kind, "hosts": {"a": {"servers": [server]}}}


def at(minute: int) -> str:
    return f"2026-11-27T{18 + minute // 60:02}:{minute % 60:02}:00.000Z"


def after(*documents: dict[str, Any]) -> Server:
    fleet = Fleet()
    for minute, one in enumerate(documents):
        fleet = fold_document(fleet, one, at(minute))
    # Also of what is kept in the store.
    plain = json.loads(json.dumps([to_plain(fleet), host_to_plain(fleet.hosts["a"])]))
    return from_plain(plain[0], {"a": plain[1]}, {}).hosts["a"].servers["x"]


def test_rates_are_those_that_runs_have_measured_in_order() -> None:
    verified = {"kind": "verify", "hosts": {"a": {"servers": [{"name": "x", "ok": True, "tokens_per_second": 25.5}]}}}
    server = after(document(tokens_per_second=20.0), document(tokens_per_second=None), verified)
    assert server.rates == ((at(0), 20.0), (at(2), 25.5))
    assert server.tokens_per_second == 25.5


def test_speed_that_a_status_repeats_is_one_point_of_each_process() -> None:
    measured = {"pid": 7, "tokens_per_second": 20.0}
    stopped = document(state="stopped", is_ready=False)
    assert after(document(**measured), document(**measured), stopped, document(**measured)).rates == ((at(0), 20.0),)
    verified = {"kind": "verify", "hosts": {"a": {"servers": [{"name": "x", "ok": True, "tokens_per_second": 25.5}]}}}
    later = document(pid=7, tokens_per_second=25.5)
    server = after(document(**measured), verified, later, document(pid=8, tokens_per_second=25.5))
    assert server.rates == ((at(0), 20.0), (at(1), 25.5), (at(3), 25.5))
    assert server.tokens_per_second == 25.5


def test_rates_are_kept_up_to_a_limit_and_not_of_another_server() -> None:
    many = [document(tokens_per_second=float(n + 1)) for n in range(MAX_RATES + 3)]
    assert [rate for _, rate in after(*many).rates] == [float(n) for n in range(4, MAX_RATES + 4)]
    assert after(*many, document(port=8081)).rates == ()


def test_log_is_that_of_the_newest_status_that_read_it() -> None:
    read = document(log=["one", "two\x07", 7])
    server = after(read, document())
    assert (server.log, server.log_as_of) == (("one", "two\x07"), at(0))
    assert after(document()).log is None
    long = after(document(log=["x" * 100_000] * 10_000)).log
    assert long is not None and sum(map(len, long)) <= 200_000


def test_planned_memory_is_apart_by_ram_and_vram() -> None:
    memory = {"planned_bytes": 300, "planned_gpu_bytes": 200, "loaded_bytes": 310, "loaded_gpu_bytes": 205}
    server = after(document(memory=memory))
    assert (server.planned_ram_bytes, server.planned_vram_bytes) == (100, 200)
    unknown = after(document())
    assert (unknown.planned_ram_bytes, unknown.planned_vram_bytes) == (None, None)
