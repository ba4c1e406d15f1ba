# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake API answers in the shapes of the real one: what passes against it means something."""

from __future__ import annotations

import json

import httpx
import pytest
from jsonschema import Draft202012Validator
from support.fake_console.api import FakeApi
from support.pythons import ROOT

HOST, SERVER = "gpu1.rack1.example.com", "qwen3-8b-q4_k_m"


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("hosts", "Hosts"),
        ("servers", "Servers"),
        (f"servers/{HOST}/{SERVER}", "ServerDetail"),
        ("models", "Models"),
        ("capacity", "Capacity"),
        ("profiles", "ProfileList"),
        ("plans", "PlanList"),
        ("plans/{plan}", "PlanDocument"),
        ("jobs", "JobList"),
        ("jobs/{job}", "JobAnswer"),
        ("jobs/none", "ProblemDocument"),
        ("keys", "KeyList"),
        ("audit", "AuditList"),
        ("session", "SessionDocument"),
    ],
)
def test_fake_answers_in_the_shapes_of_the_api(api: FakeApi, path: str, shape: str) -> None:
    document = json.loads((ROOT / "console/openapi.json").read_text())
    path = path.format(plan=next(iter(api.fleet.plans)), job=next(iter(api.fleet.jobs)))
    answer = httpx.get(f"{api.url}api/v1/{path}")
    schema = {"$ref": f"#/components/schemas/{shape}", "components": document["components"]}
    errors = [
        f"{error.json_path}: {error.message[:200]}" for error in Draft202012Validator(schema).iter_errors(answer.json())
    ]
    assert errors == []
