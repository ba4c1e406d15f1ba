# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of a host: what they say of servers, and what gets into them of what servers answer."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import Held, Run
from ansible_collections.magi.llama.plugins.module_utils._deployment.host_status import HostStatus
from ansible_collections.magi.llama.plugins.module_utils._health.probe import Probe
from ansible_collections.magi.llama.plugins.module_utils._monitoring import exporter
from ansible_collections.magi.llama.plugins.module_utils._monitoring.collect import (
    STATES,
    host_families,
    model_disks,
    status_families,
)
from ansible_collections.magi.llama.plugins.module_utils._monitoring.exporter import Exporter, server_families
from ansible_collections.magi.llama.plugins.module_utils._monitoring.exposition import (
    Family,
    exposition,
    merge_metrics,
)
from support.monitoring import needs_prometheus, program
from support.runs import ROOT

GIB = 1024**3
RECORDED = (Path(__file__).parent / "recorded/metrics-11669.txt").read_text()
SERVER = {
    "name": "a",
    "model_id": "m-q4",
    "tier": "Q4",
    "generation": 2,
    "argv": ["llama-server", "--model", "/models/m.gguf", "--metrics"],
    "memory": {"total_bytes": 3 * GIB, "vram_bytes": 2 * GIB},
    "memory_max_bytes": 4 * GIB,
}
ENTRY = {
    "name": "a",
    "state": "ready",
    "is_ready": True,
    "uptime_seconds": 5,
    "rss_bytes": GIB,
    "vram_bytes": None,
    "planned_vram_bytes": 2 * GIB,
    "device": "CUDA0",
    "restarts": 1,
    "kind": "model",
    "build": 11669,
    "tokens_per_second": None,
    "restart_pending": False,
}
LABELS = {"server": "a", "model": "m-q4", "tier": "Q4", "profile": "production", "generation": "2"}


def status(drift: Mapping[str, str] | None = None, **entry: Any) -> HostStatus:
    document = {"servers": [{**ENTRY, **entry}]}
    return HostStatus({"profile": "production"}, [SERVER], cast(Any, None), document, drift or {})


def values(families: list[Family]) -> dict[str, list[float]]:
    return {family.name: [value for _labels, value in family.samples] for family in families}


def test_server_has_its_status_as_metrics() -> None:
    found = status_families(status(), {"a": "stopped"})
    assert {tuple(labels.items())[:5] for family in found for labels, _value in family.samples} == {
        tuple(LABELS.items())
    }
    by_name = values(found)
    assert by_name["magi_llama_server_ready"] == [1]
    assert by_name["magi_llama_server_intended"] == [0]
    assert by_name["magi_llama_server_restarts_total"] == [1]
    assert by_name["magi_llama_server_rss_bytes"] == [GIB]
    assert by_name["magi_llama_server_memory_max_bytes"] == [4 * GIB]
    assert by_name["magi_llama_server_planned_memory_bytes"] == [3 * GIB]
    # What is unknown has no sample, rather than a 0.
    assert "magi_llama_server_vram_bytes" not in by_name
    assert "magi_llama_server_probed_tokens_per_second" not in by_name
    [info] = [family for family in found if family.name == "magi_llama_server_info"]
    assert info.samples[0][0] == {**LABELS, "kind": "model", "device": "CUDA0", "build": "11669"}


@pytest.mark.parametrize("state", STATES)
def test_state_is_one_of_all_states(state: str) -> None:
    [family] = [one for one in status_families(status(state=state), {}) if one.name == "magi_llama_server_state"]
    assert [labels["state"] for labels, value in family.samples if value == 1] == [state]
    assert len(family.samples) == len(STATES)


def test_states_are_those_that_a_server_can_have() -> None:
    """A state that is missing here would be of no server."""
    text = (ROOT / "plugins/modules/server_info.py").read_text()
    documented = text.partition("One of V(ready)")[2].partition("type: str")[0]
    assert {f"V({state})" in f"V(ready){documented}" for state in STATES} == {True}
    assert (f"V(ready){documented}").count("V(") == len(STATES)
    assert Probe("ready").state in STATES


@pytest.mark.parametrize(("held", "on_cpu"), [(None, 0), (2 * GIB, 0), (GIB, 1), (0, 1)])
def test_server_without_its_gpu_memory_runs_on_the_cpu(held: int | None, on_cpu: int) -> None:
    assert values(status_families(status(vram_bytes=held), {}))["magi_llama_server_on_cpu"] == [on_cpu]


def test_drift_is_of_a_server_or_of_the_host() -> None:
    found = status({"a": "not running", "/etc/systemd/system/magi-llama.target": "was edited"})
    assert values(status_families(found, {}))["magi_llama_server_drift"] == [1]
    assert values(host_families(found, None, 0.0, lambda _f: (1, 2, 3)))["magi_llama_host_drift"] == [1]


def test_run_lock_has_an_age_while_it_is_held() -> None:
    def size(_folder: str) -> tuple[int, int, int]:
        return 1, 2, 3

    held = Held(Run("1", "laptop", "me", 7, "site.yml", "2026-11-28 02:00:00 UTC"), 60.0)
    # 2026-11-28 02:05:00 UTC
    by_name = values(host_families(status(), held, 1795831500.0, size))
    assert (by_name["magi_llama_run_lock_held"], by_name["magi_llama_run_lock_age_seconds"]) == ([1], [300])
    by_name = values(host_families(status(), None, 1795831500.0, size))
    assert (by_name["magi_llama_run_lock_held"], by_name["magi_llama_run_lock_age_seconds"]) == ([0], [])


def test_disks_of_models_are_counted_once_each() -> None:
    servers = [{"argv": ["x", "--model", path]} for path in ("/b/m.gguf", "/a/m.gguf", "/c/m.gguf", "/gone/m.gguf")]
    disks = {"/a": (1, 10, 100), "/b": (1, 10, 100), "/c": (2, 5, 50)}

    def size_of(folder: str) -> tuple[int, int, int]:
        if folder not in disks:
            raise FileNotFoundError
        return disks[folder]

    assert model_disks(servers, size_of) == {"/a": (10, 100), "/c": (5, 50)}


def test_metrics_of_servers_are_one_family_each_with_labels() -> None:
    families: dict[str, Family] = {}
    merge_metrics(families, RECORDED, {"server": "a"})
    merge_metrics(families, RECORDED, {"server": "b"})
    text = exposition(families.values())
    assert text.count("# TYPE llamacpp:prompt_tokens_total counter\n") == 1
    assert 'llamacpp:prompt_tokens_total{server="a"} 19\nllamacpp:prompt_tokens_total{server="b"} 19\n' in text
    # Each reader would take these from the others.
    assert "prompt_tokens_seconds" not in text and "llamacpp:predicted_tokens_seconds{" not in text


def test_text_that_is_not_a_metric_of_llama_server_is_left_out() -> None:
    families: dict[str, Family] = {}
    text = 'up 1\nllamacpp:a{x="1"} 2\nllamacpp:a 1 1700000000\nllamacpp:b{x="1"\nmagi_llama_servers 9\n<html>\n'
    merge_metrics(families, text, {"server": "a"})
    assert (
        exposition(families.values())
        == '# HELP llamacpp:a \n# TYPE llamacpp:a untyped\nllamacpp:a{x="1",server="a"} 2\n'
    )


@pytest.mark.parametrize("number", ["1.2.3", "1-2", "1e", "1e+", "1.", "--1", "+", "0x1", "1_0", "Infinity", "1e1000"])
def test_number_that_is_none_is_left_out(number: str) -> None:
    families: dict[str, Family] = {}
    merge_metrics(families, f"llamacpp:a {number}\nllamacpp:b 2\n", {"server": "a"})
    assert values(list(families.values())) == {"llamacpp:b": [2]}


@pytest.mark.parametrize(
    ("number", "value"), [("-1.5", -1.5), ("2.5e+06", 2.5e6), ("1E-3", 1e-3), ("+Inf", math.inf), ("NaN", math.nan)]
)
def test_number_is_read(number: str, value: float) -> None:
    families: dict[str, Family] = {}
    merge_metrics(families, f"llamacpp:a {number}\n", {"server": "a"})
    assert families["llamacpp:a"].samples == [({"server": "a"}, pytest.approx(value, nan_ok=True))]


def test_label_of_prometheus_itself_is_left_out() -> None:
    families: dict[str, Family] = {}
    merge_metrics(families, 'llamacpp:a{__name__="up",x="1",__y="2", z_="3"} 2\n', {"server": "a"})
    assert families["llamacpp:a"].samples == [({"x": "1", "z_": "3", "server": "a"}, 2.0)]


def test_labels_of_a_server_replace_those_that_it_answers() -> None:
    families: dict[str, Family] = {}
    merge_metrics(families, 'llamacpp:a{server="other",position="0"} 2\n', {"server": "a"})
    assert families["llamacpp:a"].samples == [({"server": "a", "position": "0"}, 2.0)]


def test_value_of_a_label_is_escaped() -> None:
    text = exposition([Family("a", "gauge", "x\ny", [({"f": 'a"b\\c\n'}, 1.5)])])
    assert text == '# HELP a x\\ny\n# TYPE a gauge\na{f="a\\"b\\\\c\\n"} 1.5\n'


@pytest.mark.parametrize("state", ["sleeping", "wrong_identity", "loading"])
def test_only_ready_servers_are_asked(state: str) -> None:
    asked: list[str] = []
    server_families(status(state=state), lambda server: (asked.append(server["name"]), (200, b""))[1])
    assert asked == []


@pytest.mark.parametrize(("seconds", "count"), [("300", 0), ("-1", 1)])
def test_server_that_sleeps_when_idle_is_not_woken(seconds: str, count: int) -> None:
    asked: list[str] = []
    server = {**SERVER, "argv": ["llama-server", "--metrics", "--sleep-idle-seconds", seconds]}
    server_families(replace(status(), servers=[server]), lambda server: (asked.append(server["name"]), (200, b""))[1])
    assert len(asked) == count


def test_server_that_does_not_answer_has_no_metrics_and_says_so() -> None:
    def refuse(_server: Mapping[str, Any]) -> tuple[int, bytes]:
        raise ConnectionRefusedError

    assert values(server_families(status(), refuse)) == {"magi_llama_server_metrics_up": [0]}
    assert values(server_families(status(), lambda _s: (401, RECORDED.encode()))) == {
        "magi_llama_server_metrics_up": [0]
    }
    assert values(server_families(status(), lambda _s: (200, RECORDED.encode())))["llamacpp:n_decode_total"] == [20]


def test_error_of_the_exporter_itself_is_reported_and_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_state_dir: str, _now: float) -> list[Family]:
        raise KeyError("tier")

    monkeypatch.setattr(exporter, "host_metrics", fail)
    assert "magi_llama_collection_ok 0\n" in Exporter("/state").metrics()
    assert capsys.readouterr().err == "The servers could not be looked at: KeyError: 'tier'\n"


@needs_prometheus
def test_promtool_accepts_the_metrics_of_the_host() -> None:
    found = status(vram_bytes=GIB, tokens_per_second=30.5)
    own = [*host_families(found, None, 1.0, lambda _f: (1, 2, 3)), *status_families(found, {})]
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=exposition(own), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
