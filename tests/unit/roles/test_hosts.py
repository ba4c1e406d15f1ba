# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of an inventory the playbooks run on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.runs import BIN, CHECKOUT, ROOT, execute

PLAYBOOKS = sorted(
    {path.stem for path in (ROOT / "playbooks").glob("*.yml")} - {"console", "gateway", "import", "monitoring", "redis"}
)


def plays(folder: Path, playbook: str, *arguments: str, models: str = "models") -> list[list[str]]:
    """The hosts of each play in an inventory in which w is a gateway, and b is one that also runs servers."""
    inventory = folder / "hosts.yml"
    groups = {"gateways": {"hosts": {"w": {}, "b": {}}}, models: {"hosts": {"a": {}, "b": {}}}}
    inventory.write_text(json.dumps({"all": {"children": groups}}), encoding="utf-8")
    book = ROOT / f"playbooks/{playbook}.yml"
    command = [BIN / "ansible-playbook", "-i", inventory, book, "--list-hosts", *arguments]
    done = execute(command, folder, **CHECKOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return [block.split() for block in re.findall(r"hosts \(\d+\):\n((?: +\S+\n)*)", done.stdout + "\n")]


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_host_that_is_only_a_gateway_gets_no_servers(tmp_path: Path, playbook: str) -> None:
    # The play of backup.yml for the console has no host here.
    found = [hosts for hosts in plays(tmp_path, playbook) if hosts]
    assert found and all(sorted(hosts) == ["a", "b"] for hosts in found)
    # Without a group models, no gateway does.
    found = [hosts for hosts in plays(tmp_path, playbook, models="gpu") if hosts]
    assert found and all(hosts == ["a"] for hosts in found)


def test_target_and_canary_of_a_rollout_are_its_hosts(tmp_path: Path) -> None:
    assert [sorted(hosts) for hosts in plays(tmp_path, "rollout", "-e", "target=b")] == [["b"]] * 3
    arguments = json.dumps({"target": ["w", "b"], "rollout_canary": "b"})
    assert [sorted(hosts) for hosts in plays(tmp_path, "rollout", "-e", arguments)] == [["b", "w"]] * 3
