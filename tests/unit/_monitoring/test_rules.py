# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules and alerts: each fires in promtool's own tests, and has its section in the documentation."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml
from support.monitoring import RULES, needs_prometheus, program
from support.runs import ROOT

CASES = Path(__file__).parent / "alerts.test.yml"
ALL = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL if "alert" in rule]


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    (tmp_path / RULES.name).write_text(RULES.read_text())
    (tmp_path / CASES.name).write_text(CASES.read_text())
    done = subprocess.run(
        [program("promtool"), "test", "rules", CASES.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        [program("promtool"), "check", "rules", RULES.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_alerts_all_have_a_case_in_which_they_fire() -> None:
    tests = yaml.safe_load(CASES.read_text())["tests"]
    fired = {
        (case["alertname"], alert["exp_labels"].get("cause"))
        for test in tests
        for case in test["alert_rule_test"]
        for alert in case["exp_alerts"]
    }
    assert fired == {(rule["alert"], rule["labels"].get("cause")) for rule in ALERTS}


def test_alerts_all_have_a_section_in_the_documentation() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    sections = re.findall(r"^### (MagiLlama\w+)$", text, re.MULTILINE)
    assert sections == list(dict.fromkeys(rule["alert"] for rule in ALERTS))
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
