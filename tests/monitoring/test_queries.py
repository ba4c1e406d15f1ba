# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every query of a dashboard and every rule, against a real Prometheus that has read real servers by the exporter."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._monitoring.exporter import make_server
from ansible_collections.magi.llama.plugins.module_utils._monitoring.exposition import RESET_WHEN_READ
from support import reaper
from support.bed import PARAMETERS, PROFILES, Bed
from support.monitoring import DASHBOARDS, RULES, needs_prometheus, program
from support.runs import ROOT

pytestmark = needs_prometheus
RECORDED = ROOT / "tests/unit/_monitoring/recorded"
NAME = re.compile(r"(?<![\w:$])(?:llamacpp:\w+|magi_llama_\w+|(?:server|model):\w+:\w+|up)(?![\w:(])")
KEY = "key-of-the-servers-in-this-test"
# What this machine cannot show: unit tests have these in the answer of the exporter.
NOT_HERE = {"magi_llama_server_vram_bytes", "magi_llama_server_planned_vram_bytes"}
VALUES = {"$__rate_interval": "5m", "$__range": "1h", "$host": ".+", "$model": ".+"}


@dataclass(frozen=True)
class Watched:
    """Prometheus, with what it has read of two servers: an address to ask, and the exporter's own text."""

    url: str
    text: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prometheus(folder: Path, exporter: int) -> Iterator[str]:
    port = free_port()
    (folder / RULES.name).write_text(RULES.read_text())
    target = {"targets": [f"127.0.0.1:{exporter}"], "labels": {"host": "bed"}}
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [RULES.name],
        "scrape_configs": [{"job_name": "magi-llama", "static_configs": [target]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings))
    own = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command = [program("prometheus"), *own, f"--web.listen-address=127.0.0.1:{port}"]
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for(watched: Watched, expression: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if watched.query(expression):
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"{expression} has no value"
        time.sleep(0.3)


def work(bed: Bed, done: threading.Event) -> None:
    """Ask both servers again and again."""
    headers = {"Authorization": f"Bearer {KEY}"}
    while not done.wait(0.5):
        for port in (bed.port, bed.port + 1):
            asked = {"prompt": "Hello", "n_predict": 8, "ignore_eos": True}
            httpx.post(f"http://127.0.0.1:{port}/completion", json=asked, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with reaper.temporary_folder("magi-mon-") as folder:
        bed = Bed(folder / "bed")
        keys = folder / "keys"
        keys.write_text(f"{KEY}\n")
        keys.chmod(0o600)
        bed.variables["servers_api_key_file"] = str(keys)
        bed.write_inventory()
        # With a key, servers have no metrics by themselves.
        profile = {**PROFILES["pair"], "parameters": {**PARAMETERS, "metrics": True}}
        (bed.inventory / "profiles/pair.yml").write_text(json.dumps(profile))
        try:
            bed.run("site")
            server = make_server(str(bed.state), "127.0.0.1", 0)
            done = threading.Event()
            threads = [threading.Thread(target=server.serve_forever), threading.Thread(target=work, args=(bed, done))]
            for thread in threads:
                thread.start()
            port = server.server_address[1]
            try:
                with prometheus(folder, port) as url:
                    wait_for(Watched(url, ""), "count(server:llamacpp_generated_tokens:per_second) == 2")
                    wait_for(Watched(url, ""), "count(server:llamacpp_prompt_tokens:per_second) == 2")
                    yield Watched(url, httpx.get(f"http://127.0.0.1:{port}/metrics").text)
            finally:
                done.set()
                server.shutdown()
                server.server_close()
                for thread in threads:
                    thread.join()
        finally:
            bed.remove()


def expressions() -> list[Any]:
    """Each query of each panel, as Grafana sends it."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                text = target["expr"]
                for name, value in VALUES.items():
                    text = text.replace(name, value)
                found.append(pytest.param(text, id=f"{path.stem}: {panel['title']} {target['refId']}"))
    return found


@pytest.mark.parametrize("expression", expressions())
def test_query_of_a_panel_has_a_value(watched: Watched, expression: str) -> None:
    assert "$" not in expression
    names = set(NAME.findall(expression))
    assert names
    assert bool(watched.query(expression)) == (not names & NOT_HERE)


def test_rules_use_metrics_that_there_are(watched: Watched) -> None:
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    for rule in rules:
        names = set(NAME.findall(rule["expr"])) - {rule.get("record")}
        assert names, rule
        assert {name for name in names if not watched.query(name)} == set(), rule
        watched.query(rule["expr"])
    for rule in rules:
        if "record" in rule:
            assert watched.query(rule["record"]), rule


def test_healthy_servers_raise_no_alert(watched: Watched) -> None:
    answer = httpx.get(f"{watched.url}/api/v1/alerts").json()
    assert answer["data"]["alerts"] == []


def test_samples_have_the_labels_of_their_server(watched: Watched) -> None:
    [one] = watched.query('llamacpp:tokens_predicted_total{tier="Q4"}')
    labels = {name: one["metric"][name] for name in ("host", "server", "model", "profile")}
    name = "tiny-llama-q4_k_m"
    assert labels == {"host": "bed", "server": name, "model": name, "profile": "pair"}


def test_key_of_the_servers_is_on_their_host_alone(watched: Watched) -> None:
    assert KEY not in watched.text
    assert KEY not in httpx.get(f"{watched.url}/api/v1/status/config").text


def test_metrics_of_this_build_are_those_recorded(watched: Watched) -> None:
    """A build with other metrics: record its /metrics next to the older ones, and look at rules and dashboards."""
    builds = {one["metric"]["build"] for one in watched.query("magi_llama_server_info")}
    [build] = builds
    recorded = RECORDED / f"metrics-{build}.txt"
    assert recorded.exists(), f"no recorded /metrics of build {build}"
    types = re.findall(r"^# TYPE (llamacpp:\S+ \S+)$", recorded.read_text(), re.MULTILINE)
    found = re.findall(r"^# TYPE (llamacpp:\S+ \S+)$", watched.text, re.MULTILINE)
    assert set(found) == {one for one in types if one.split()[0] not in RESET_WHEN_READ}
