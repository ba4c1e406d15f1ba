# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts name playbooks as the reader of this run calls them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible_collections.magi.llama.plugins.plugin_utils import playbooks

ROOT = Path(__file__).parents[3]
TEXT = "Run start.yml -e servers=all then. Until then status.yml shows them; see /etc/site.yml and my-site.yml."
BY_NAME = (
    "Run magi.llama.start -e servers=all then. Until then magi.llama.status shows them; see /etc/site.yml and "
    "my-site.yml."
)


def called_with(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(args=tuple(map(str, arguments))))


@pytest.mark.parametrize("playbook", ["magi.llama.site", "/srv/fleet/site.yml", "/srv/fleet/deploy.yml"])
def test_run_of_installed_collection_names_playbooks_by_name(monkeypatch: pytest.MonkeyPatch, playbook: str) -> None:
    called_with(monkeypatch, playbook)
    assert playbooks.as_called(TEXT) == BY_NAME


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/stop.yml"])
def test_run_of_checkout_names_playbooks_by_file(monkeypatch: pytest.MonkeyPatch, playbook: str) -> None:
    called_with(monkeypatch, ROOT / playbook)
    assert playbooks.as_called(TEXT) == TEXT
    monkeypatch.chdir(ROOT)
    called_with(monkeypatch, "/srv/other.yml", playbook)
    assert playbooks.as_called(TEXT) == TEXT


def test_sentences_of_answers_are_replaced_and_data_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    called_with(monkeypatch, "magi.llama.site")
    answer = {
        "msg": TEXT,
        "ansible_facts": {"llama_plan": {"warnings": [TEXT], "servers": [{"reason": TEXT, "argv": ["site.yml"]}]}},
        "drift": {"a": TEXT},
        "servers": [{"name": "site.yml", "fix": None, "detail": TEXT, "pid": 1}],
    }
    assert playbooks.answer_as_called(answer) == {
        "msg": BY_NAME,
        "ansible_facts": {
            "llama_plan": {"warnings": [BY_NAME], "servers": [{"reason": BY_NAME, "argv": ["site.yml"]}]}
        },
        "drift": {"a": BY_NAME},
        "servers": [{"name": "site.yml", "fix": None, "detail": BY_NAME, "pid": 1}],
    }


def test_all_playbooks_are_known() -> None:
    names = {path.stem for path in (ROOT / "playbooks").glob("*.yml")}
    assert names == {name for name in names if playbooks.NAMED.fullmatch(f"{name}.yml")}


def test_every_text_of_controller_passes_it() -> None:
    """Modules' answers pass it in HostAction; what is said on the controller itself has to call it."""
    for path in [*(ROOT / "plugins/action").glob("*.py"), *(ROOT / "plugins/plugin_utils").glob("*.py")]:
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            texts = [] if line.lstrip().startswith(("#", '"')) else re.findall(r'"[^"]*"', line)
            if any(playbooks.NAMED.search(text) and " " in text for text in texts):
                assert "as_called(" in "".join(lines[number - 1 : number + 2]), f"{path.name}:{number + 1}: {line}"
