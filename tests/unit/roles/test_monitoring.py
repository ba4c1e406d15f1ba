# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the role monitoring installs Debian's packages, and whether what answers on its ports is its own."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._services import systemd
from support.runs import ROOT

from .test_results import Fleet

TASKS = ROOT / "roles/monitoring/tasks"
OURS = {"data": {"config.file": "/m/magi-llama-prometheus.yml"}, "status": "success"}
DEBIANS = {"data": {"config.file": "/etc/prometheus/prometheus.yml"}, "status": "success"}
ROUTES = {"config": {"original": 'inhibit_rules:\n- source_matchers:\n  - alertname="MagiLlamaHostDown"\n'}}
PROMETHEUS, ALERTMANAGER = "Check that Prometheus is the role's own", "Check that Alertmanager is the role's own"
# The name of a check, what the two services have answered, and what it says; nothing where it passes.
CASES: list[tuple[str, list[dict[str, Any]], str]] = [
    (PROMETHEUS, [{"json": OURS}, {}], ""),
    (
        PROMETHEUS,
        [{"json": DEBIANS}, {}],
        "monitoring_prometheus_port: another service has port 9090 of this host, a Prometheus with the configuration "
        "/etc/prometheus/prometheus.yml. Set monitoring_prometheus_port to a free port, or stop that service. journalctl -u "
        "magi-llama-prometheus on this host has the error of the one that was to run there.",
    ),
    (PROMETHEUS, [{"status": 404}, {}], "of this host, which is not a Prometheus. Set"),
    (ALERTMANAGER, [{}, {"json": ROUTES}], ""),
    (
        ALERTMANAGER,
        [{}, {"json": {"config": {"original": "route: {}\n"}}}],
        "monitoring_alertmanager_port: another service has port 9093 of this host, an Alertmanager with another "
        "configuration. Set monitoring_alertmanager_port to a free port, or stop that service. journalctl -u "
        "magi-llama-alertmanager on this host has the error of the one that was to run there.",
    ),
    (ALERTMANAGER, [{}, {"status": -1, "msg": "refused"}], "of this host, which is not an Alertmanager. Set"),
]


def tasks(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((TASKS / file).read_text())
    return found


def test_services_of_packages_never_run() -> None:
    """They would listen on all addresses, also where the run ends after the packages were installed."""
    found = tasks("install.yml")
    names = [task["name"] for task in found]
    at = names.index("Install Debian's packages")
    assert found[at]["ansible.builtin.apt"]["policy_rc_d"] == 101
    assert names[at + 1] == "Stop the services of the packages that were installed just now"
    stopped = found[at + 1]["ansible.builtin.systemd_service"]
    assert (stopped["state"], stopped["enabled"]) == ("stopped", False)


def test_exporter_runs_by_the_python_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python that Ansible uses may be one of a virtual environment, which goes away, or which a user may write."""
    texts = [path.read_text() for path in (ROOT / "roles/monitoring").rglob("*.*") if path.is_file()]
    assert not [text for text in texts if re.search(r"ansible_facts\W+python\b|ansible_python", text)]
    [unit] = [task for task in tasks("exporter.yml") if task["name"] == "Write its unit"]
    assert unit["vars"]["__argv"][0] == "{{ ansible_facts['llama_host'].python }}"
    monkeypatch.setattr(systemd, "PYTHONS", (str(tmp_path / "python3"), str(tmp_path / "platform-python")))
    assert systemd.host_python() is None
    (tmp_path / "platform-python").touch()
    assert systemd.host_python() == str(tmp_path / "platform-python")


def test_another_service_on_a_port_is_an_error() -> None:
    known = {"monitoring_state_dir": "/m", "monitoring_prometheus_port": 9090, "monitoring_alertmanager_port": 9093}
    checks = {task["name"]: task for task in tasks("run.yml") if "ansible.builtin.assert" in task}
    assert set(checks) == {name for name, _said, _text in CASES}
    played = []
    for number, (name, said, _text) in enumerate(CASES):
        shown = {"ansible.builtin.debug": {"msg": f"case {number}: {{{{ ansible_failed_result.msg }}}}<"}}
        variables = {**known, "__monitoring_said": {"results": said}}
        played.append({"vars": variables, "block": [checks[name]], "rescue": [shown]})
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        fleet = Fleet(Path(folder))
        fleet.add("h")
        own = Path(folder) / "own.yml"
        own.write_text(json.dumps([{"hosts": "h", "gather_facts": False, "tasks": played}]))
        output = fleet.run(str(own.with_suffix("")))
    found = {int(number): text for number, text in re.findall(r'"msg": "case (\d+): (.*)<"', output)}
    for number, (_name, _said, text) in enumerate(CASES):
        assert text in found.get(number, "") and (number in found) == bool(text), output
