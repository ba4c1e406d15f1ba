# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bed with a gateway before its servers, for tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import AdminSocket
from support.bed import PARAMETERS, Bed

KEY, OTHER_KEY, SERVER_KEY = "gateway-key-of-alice", "gateway-key-of-bob", "key-of-the-servers-7f3a"
Q2, Q3, Q4 = "tiny-llama-q2_k", "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"
PROFILES: dict[str, Any] = {
    "four": {"enabled_models": [{"model": Q4, "instances": 2}, Q3, Q2], "parameters": {**PARAMETERS, "parallel": 2}},
    "three": {"enabled_models": [Q4, Q3, Q2], "parameters": {**PARAMETERS, "parallel": 2}},
    "two": {"enabled_models": [Q3, Q2], "parameters": {**PARAMETERS, "parallel": 2}},
}
CLIENTS = [
    {"name": "alice", "key": KEY},
    {"name": "bob", "key": OTHER_KEY, "models": [Q2], "rate_per_minute": 5},
]


@dataclass
class Gateway:
    """A bed with a gateway."""

    bed: Bed
    url: str
    metrics: str
    state: Path

    def client(self, key: str | None = KEY, **more: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False, **more)

    def complete(self, model: str, key: str = KEY, **more: Any) -> httpx.Response:
        with self.client(key) as client:
            return client.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 2, **more})

    def served_by(self, model: str) -> str:
        answer = self.complete(model)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-magi-model"]

    @property
    def admin(self) -> AdminSocket:
        return AdminSocket(str(self.state / "run/admin.sock"))

    def checks(self) -> dict[tuple[str, str], str]:
        return self.admin.checks()

    def set(self, **variables: Any) -> None:
        self.bed.variables.update(variables)
        write_inventory(self.bed)

    def wait_up(self, count: int, seconds: float = 15.0) -> None:
        """Wait until this number of servers is in the gateway and healthy."""
        deadline = time.monotonic() + seconds
        while sum(outcome == "L7OK" for outcome in self.checks().values()) != count:
            assert time.monotonic() < deadline, self.checks()
            time.sleep(0.1)


def write_inventory(bed: Bed) -> None:
    hosts = {
        "hosts": {"bed": bed.variables},
        "children": {name: {"hosts": {"bed": {}}} for name in ("models", "gateways")},
    }
    (bed.inventory / "hosts.yml").write_text(yaml.safe_dump({"all": hosts}))
